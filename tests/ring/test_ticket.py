"""What a copy reads and writes lives until it is over, and no longer; whoever drops it, and whenever."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from rings import native_ring

from vitcache import CudaError, _native
from vitcache.device.stand_in import open_runtime
from vitcache.ring.ticket import as_native_stream
from vitcache.testing import stand_in

CAPACITY, PIECE = 1 << 16, 1 << 13


@pytest.fixture
def ring_options():
    return {"capacity_bytes": CAPACITY, "piece_bytes": PIECE}


def nothing() -> torch.Tensor:
    return torch.empty(0)


def test_source_and_destination_live_until_the_copy_is_over(ring):
    src, dst = np.arange(1000, dtype=np.float32), torch.zeros(1000)
    kept = weakref.ref(src), weakref.ref(dst)
    with stand_in.paused():
        ticket = ring.copy_to(dst, src)
        del src, dst
        gc.collect()
        ring.copy_to(nothing(), nothing())
        assert all(reference() is not None for reference in kept)
    ticket.synchronize()
    assert kept[0]() is kept[1]() is None


@pytest.mark.parametrize("ask", ["synchronize", "wait", "done", "close"])
def test_who_learns_that_a_copy_is_over_has_its_memory_back(ring, ask):
    dst = torch.zeros(1000)
    kept = weakref.ref(dst)
    ticket = ring.copy_to(dst, torch.ones(1000))
    del dst
    if ask == "close":
        ring.close()
    elif ask == "done":
        while not ticket.done:
            pass
    else:
        getattr(ticket, ask)()
    assert kept() is None


def test_a_copy_that_waits_for_room_keeps_what_it_still_reads_and_writes(ring):
    """Others that queue meanwhile must not take its first pieces, which are over, for all of it."""
    kept: list[weakref.ref] = []
    tickets = []

    def produce() -> None:
        src, dst = (torch.full((2 * CAPACITY,), n, dtype=torch.uint8) for n in (1, 0))
        kept.extend([weakref.ref(src), weakref.ref(dst)])
        tickets.append(ring.copy_to(dst, src))

    thread = threading.Thread(target=produce)
    with ring.hold():
        thread.start()
        while stand_in.count().copies < CAPACITY // PIECE:
            pass
        ring.copy_to(nothing(), nothing())
        stand_in.pause(True)
    thread.join()  # there is room now, and nothing moves
    assert not tickets[0].done
    assert kept[1]() is not None
    result = kept[1]()
    stand_in.pause(False)
    tickets[0].synchronize()
    assert bool((result == 1).all())


@pytest.mark.parametrize("reason", ["closed", "full", "failed"])
def test_a_copy_that_was_refused_lets_go_of_everything(ring, reason):
    dst = torch.zeros(1000)
    kept = weakref.ref(dst)
    if reason == "closed":
        ring.close()
        with pytest.raises(RuntimeError, match="the ring was closed"):
            ring.copy_to(dst, torch.ones(1000))
    elif reason == "full":
        full = torch.zeros(CAPACITY, dtype=torch.uint8)
        with ring.hold():
            ring.copy_to(torch.empty_like(full), full).synchronize()
            with pytest.raises(TimeoutError, match="the ring is on hold"):
                ring.copy_to(dst, torch.ones(1000), timeout_s=0)
    else:
        stand_in.fail("cuStreamWaitValue32_v2")
        ticket = ring.copy_to(dst, torch.ones(1000))
        with pytest.raises(CudaError, match="cuStreamWaitValue32"):
            ticket.synchronize()
        ticket.wait_source_read()
    del dst
    gc.collect()
    assert kept() is None


def test_a_copy_that_was_given_up_halfway_keeps_what_it_may_still_use(ring):
    src, dst = torch.ones(2 * CAPACITY, dtype=torch.uint8), torch.zeros(2 * CAPACITY, dtype=torch.uint8)
    kept = weakref.ref(dst)
    with stand_in.paused():
        with pytest.raises(TimeoutError, match="timed out while waiting for"):
            ring.copy_to(dst, src, timeout_s=0)
        del src, dst
        gc.collect()
        ring.copy_to(nothing(), nothing())
        assert kept() is not None
    ring.close()
    assert kept() is None


class Stream:
    """A `torch.cuda.Stream` by what a ticket reads of it."""

    def __init__(self, handle: int, device: int) -> None:
        self.cuda_stream, self.device = handle, torch.device("cuda", device)


@pytest.mark.parametrize(
    ("stream", "handle", "device"), [(None, 5, 1), (0, 0, 1), (7, 7, 1), (Stream(9, 0), 9, 0)]
)
def test_a_stream_of_torch_keeps_its_device_and_others_are_of_the_rings(stream, handle, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(5, device.index))
    native = as_native_stream(stream, torch.device("cuda", 1))
    assert (native.handle, native.device) == (handle, device)


def test_a_native_copy_behind_a_stream_of_another_device_is_a_value_error(ring):
    stand_in.set_devices(2)
    native = _native.Ring(open_runtime(), CAPACITY, 1, PIECE, 1, None)
    ticket = native.make_ticket()
    with pytest.raises(ValueError, match="after is a stream of device 0, the ring copies to device 1"):
        native.copy(ticket, 0, 0, 1, (0,), (1,), _native.Cast.none, _native.Stream(0, 0), None)
    native.copy(ticket, 0, 0, 1, (0,), (1,), _native.Cast.none, _native.Stream(0, 1), None)
    assert ticket.done
    assert native.stream.device == 1
    native.close()


class HandleAlone:
    cuda_stream = 7


@pytest.mark.parametrize(
    ("stream", "name"), [("side", "str"), (True, "bool"), (HandleAlone(), "HandleAlone")]
)
def test_a_stream_of_another_type_is_refused_by_name(stream, name):
    with pytest.raises(TypeError, match=rf"must be a torch\.cuda\.Stream or an int, it is {name}"):
        as_native_stream(stream, torch.device("cuda", 1))


def test_a_native_ring_of_no_runtime_is_a_type_error():
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        _native.Ring(None, CAPACITY, 1, PIECE, 0, None)


def test_a_native_ticket_of_another_device_is_a_value_error(ring):
    stand_in.set_devices(2)
    native = _native.Ring(open_runtime(), CAPACITY, 1, PIECE, 1, None)
    with pytest.raises(ValueError, match="the ticket is of device 0, the ring copies to device 1"):
        native.copy(native_ring(ring).make_ticket(), 0, 0, 1, (0,), (1,), _native.Cast.none, None, None)
    native.close()


@pytest.mark.parametrize("other", [0, _native.Event(0)])
def test_a_number_or_an_event_in_the_place_of_a_native_stream_is_a_type_error(ring, other):
    with pytest.raises(TypeError, match="incompatible function arguments"):
        native_ring(ring).make_ticket().wait(other)
