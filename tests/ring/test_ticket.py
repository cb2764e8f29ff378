"""The memory of a copy stays alive until the copy is complete, and not longer; streams of a ticket."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from rings import wait_on_stream

from vitcache import CudaError, PinnedRing, _native
from vitcache.device.stand_in import open_runtime
from vitcache.ring.ticket import as_native_stream
from vitcache.testing import stand_in

CAPACITY, PIECE = 1 << 16, 1 << 13


@pytest.fixture
def ring_options():
    return {"capacity_bytes": CAPACITY, "piece_bytes": PIECE}


def copy_nothing(ring: PinnedRing) -> None:
    """Queue an empty copy, so that the ring drops the memory of complete copies."""
    ring.copy_to(torch.empty(0), torch.empty(0))


def test_source_and_destination_stay_alive_until_the_copy_is_complete(ring):
    src, dst = np.arange(1000, dtype=np.float32), torch.zeros(1000)
    references = weakref.ref(src), weakref.ref(dst)
    with stand_in.paused():
        ticket = ring.copy_to(dst, src)
        del src, dst
        gc.collect()
        copy_nothing(ring)
        assert all(reference() is not None for reference in references)
    ticket.synchronize()
    assert references[0]() is references[1]() is None


@pytest.mark.parametrize("call", ["synchronize", "wait", "done", "close"])
def test_destination_is_freed_once_a_call_reports_the_copy_complete(ring, call):
    dst = torch.zeros(1000)
    reference = weakref.ref(dst)
    ticket = ring.copy_to(dst, torch.ones(1000))
    del dst
    if call == "close":
        ring.close()
    elif call == "done":
        while not ticket.done:
            pass
    else:
        getattr(ticket, call)()
    assert reference() is None


def test_copy_to_that_waits_for_a_slot_keeps_its_destination_alive(ring):
    """After the first pieces are complete, another copy is queued. It must not free the destination."""
    destinations: list[weakref.ref] = []
    tickets = []

    def produce() -> None:
        src, dst = (torch.full((2 * CAPACITY,), n, dtype=torch.uint8) for n in (1, 0))
        destinations.append(weakref.ref(dst))
        tickets.append(ring.copy_to(dst, src))

    thread = threading.Thread(target=produce)
    with ring.hold():
        thread.start()
        while stand_in.count().copies < CAPACITY // PIECE:
            pass
        copy_nothing(ring)
        stand_in.pause(True)
    try:
        thread.join()  # the first slots have retired, and the streams are paused
        assert not tickets[0].done
        result = destinations[0]()
        assert result is not None
    finally:
        stand_in.pause(False)  # `ring` waits for its copies when it closes
    tickets[0].synchronize()
    assert bool((result == 1).all())


@pytest.mark.parametrize("reason", ["closed", "full", "failed"])
def test_refused_or_failed_copy_frees_its_destination(ring, reason):
    dst = torch.zeros(1000)
    reference = weakref.ref(dst)
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
    assert reference() is None


def test_copy_that_timed_out_halfway_keeps_its_destination_alive(ring):
    src, dst = torch.ones(2 * CAPACITY, dtype=torch.uint8), torch.zeros(2 * CAPACITY, dtype=torch.uint8)
    reference = weakref.ref(dst)
    with stand_in.paused():
        with pytest.raises(TimeoutError, match="timed out while waiting for"):
            ring.copy_to(dst, src, timeout_s=0)
        del src, dst
        gc.collect()
        copy_nothing(ring)
        assert reference() is not None
    ring.close()
    assert reference() is None


class Stream:
    """The attributes of a `torch.cuda.Stream` that a ticket reads."""

    def __init__(self, handle: int, device: int) -> None:
        self.cuda_stream, self.device = handle, torch.device("cuda", device)


@pytest.mark.parametrize(
    ("stream", "handle", "device"), [(None, 5, 1), (0, 0, 1), (7, 7, 1), (Stream(9, 0), 9, 0)]
)
def test_as_native_stream_takes_torchs_device_or_the_rings(stream, handle, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(5, device.index))
    native = as_native_stream("after", stream, torch.device("cuda", 1))
    assert (native.handle, native.device) == (handle, device)


def test_native_copy_after_a_stream_of_another_device_raises_value_error(ring):
    stand_in.set_devices(2)
    native = _native.Ring(open_runtime(), CAPACITY, 1, PIECE, 1, None)
    empty = torch.empty(0)
    arguments = (empty, None, 0, 1, (0,), (1,), _native.Cast.none)
    with pytest.raises(ValueError, match="after is a stream of device 0, the ring copies to device 1"):
        native.copy(*arguments, _native.Stream(0, 0), None, empty, empty)
    assert native.copy(*arguments, _native.Stream(0, 1), None, empty, empty).done
    assert native.stream.device == 1
    native.close()


class StreamWithoutDevice:
    cuda_stream = 7


@pytest.mark.parametrize(
    ("stream", "name"), [("side", "str"), (True, "bool"), (StreamWithoutDevice(), "StreamWithoutDevice")]
)
def test_as_native_stream_with_another_type_raises_type_error(stream, name):
    with pytest.raises(TypeError, match=rf"after must be a torch\.cuda\.Stream or an int, got {name}"):
        as_native_stream("after", stream, torch.device("cuda", 1))


@pytest.mark.parametrize("handle", [-1, 1 << 64, 10**400])
def test_as_native_stream_of_an_int_that_is_no_address_raises_value_error(handle):
    with pytest.raises(ValueError, match=r"after is .* it must be at (least 0|most 18446744073709551615)"):
        as_native_stream("after", handle, torch.device("cuda", 1))


def test_native_ring_without_a_runtime_raises_type_error():
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        _native.Ring(None, CAPACITY, 1, PIECE, 0, None)


@pytest.mark.parametrize("stream", [0, _native.Event(0)])
def test_native_wait_on_an_int_or_an_event_raises_type_error(ring, stream):
    with pytest.raises(TypeError, match="incompatible function arguments"):
        wait_on_stream(ring.copy_to(torch.zeros(0), torch.zeros(0)), stream)
