"""Signals and call-backs during calls of a ring: waits end, handlers may call, and nothing stays on hold."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import interrupts
import pytest
import torch
from rings import copies_in_flight

from vitcache import PinnedRing, Ticket
from vitcache.ring import arguments, pinned_ring, ticket
from vitcache.testing import stand_in

CAPACITY, PIECE = 1 << 16, 1 << 13
FILES = {module.__file__ for module in (arguments, pinned_ring, ticket)}


@pytest.fixture
def ring_options():
    return {"capacity_bytes": CAPACITY, "piece_bytes": PIECE}


class Interrupted(BaseException):
    """Raised by a signal handler."""


def raise_interrupted(signum: int, frame: FrameType | None) -> None:
    raise Interrupted


@contextmanager
def signal_while(
    is_waiting: Callable[[], bool], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Send a signal to the main thread as soon as `is_waiting`, and handle it by `handler`.

    If the wait does not end, the streams of the stand-in run after 60 seconds, so that the test fails.
    """
    before = signal.signal(signal.SIGUSR1, handler)
    is_over = threading.Event()

    def send() -> None:
        while not is_waiting():
            if is_over.wait(0.001):
                return
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        if not is_over.wait(60):
            stand_in.pause(False)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        is_over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def is_inside(function: Callable[..., object]) -> Callable[[], bool]:
    """Return whether the innermost Python frame of the main thread runs `function`: a native call waits."""
    main = threading.main_thread().ident
    return lambda: sys._current_frames()[main].f_code is function.__code__


def fill(ring: PinnedRing) -> None:
    """Use all bytes of the ring, which must be on hold or paused."""
    src = torch.ones(CAPACITY, dtype=torch.uint8)
    ring.copy_to(torch.zeros_like(src), src)


def assert_works(ring: PinnedRing) -> None:
    dst = torch.zeros(1000)
    ring.copy_to(dst, torch.ones(1000), timeout_s=60).synchronize()
    assert int(dst.sum()) == 1000
    ring.check_integrity()


def test_copy_to_that_waits_ends_with_the_exception_of_a_signal_handler(ring):
    dst = torch.zeros(10)
    reference = weakref.ref(dst)
    with ring.hold():
        fill(ring)
        copies = ring.stats().copies
        with (
            signal_while(lambda: ring.stats().copies > copies, raise_interrupted),
            pytest.raises(Interrupted),
        ):
            ring.copy_to(dst, torch.ones(10), timeout_s=60)
    assert_works(ring)
    del dst
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("call", ["synchronize", "wait"])
def test_wait_for_a_ticket_ends_with_the_exception_of_a_signal_handler(ring, call):
    dst = torch.zeros(10)
    with stand_in.paused():
        ticket = ring.copy_to(dst, torch.ones(10))
        is_waiting = is_inside(Ticket.synchronize)  # on the CPU, `wait` calls it
        with signal_while(is_waiting, raise_interrupted), pytest.raises(Interrupted):
            getattr(ticket, call)()
        assert not ticket.done
    ticket.synchronize()
    assert dst.tolist() == [1.0] * 10


def test_close_that_was_interrupted_accepts_no_copy_and_can_be_called_again(ring):
    before = stand_in.count().locked_bytes
    dst = torch.zeros(10)
    with stand_in.paused():
        ring.copy_to(dst, torch.ones(10))
        with signal_while(is_inside(PinnedRing.close), raise_interrupted), pytest.raises(Interrupted):
            ring.close()
        with pytest.raises(RuntimeError, match="the ring was closed"):
            ring.copy_to(dst, torch.ones(10))
        assert stand_in.count().locked_bytes == before
    ring.close()
    assert dst.tolist() == [1.0] * 10
    assert stand_in.count().locked_bytes < before


def test_signal_handler_may_copy_while_it_interrupts_a_copy_to_that_waits(ring):
    """The handler's copy passes the waiting one: in the order of the calls, each would wait for the other."""
    late, inner = torch.zeros(10), torch.zeros(CAPACITY // 4)

    def copy(signum: int, frame: FrameType | None) -> None:
        hold.__exit__(None, None, None)
        ring.copy_to(inner, torch.ones(CAPACITY // 4), timeout_s=60).synchronize()
        assert ring.stats().copies == 3

    hold = ring.hold()
    hold.__enter__()
    fill(ring)
    with signal_while(lambda: ring.stats().copies == 2, copy):
        ring.copy_to(late, torch.ones(10), timeout_s=60).synchronize()
    assert int(inner.sum()) == CAPACITY // 4
    assert late.tolist() == [1.0] * 10
    ring.check_integrity()


def test_close_from_a_signal_handler_inside_of_copy_to_names_both_calls(ring):
    messages: list[str] = []

    def close(signum: int, frame: FrameType | None) -> None:
        try:
            ring.close()
        except RuntimeError as error:
            messages.append(str(error))
        hold.__exit__(None, None, None)

    hold = ring.hold()
    hold.__enter__()
    fill(ring)
    copies = ring.stats().copies
    with signal_while(lambda: ring.stats().copies > copies, close):
        ring.copy_to(torch.zeros(10), torch.ones(10), timeout_s=60).synchronize()
    assert messages == ["close was called from inside copy_to of the same ring: it would wait for itself"]
    assert_works(ring)


def test_close_from_a_signal_handler_inside_of_close_closes_the_ring(ring):
    before = stand_in.count().locked_bytes
    stand_in.pause(True)

    def close(signum: int, frame: FrameType | None) -> None:
        stand_in.pause(False)
        ring.close()

    dst = torch.zeros(10)
    ring.copy_to(dst, torch.ones(10))
    with signal_while(is_inside(PinnedRing.close), close):
        ring.close()
    assert dst.tolist() == [1.0] * 10
    assert stand_in.count().locked_bytes < before


def test_freed_source_whose_finalizer_calls_the_ring_works(ring):
    """The finalizer runs while `synchronize` drops the memory of complete copies."""

    class Source(torch.Tensor):
        def __del__(self) -> None:
            ring.copy_to(torch.zeros(3), torch.ones(3)).synchronize()
            calls.append(ring.stats().copies)

    calls: list[int] = []
    src = torch.ones(100).as_subclass(Source)
    dst = torch.zeros(100).as_subclass(Source)
    ticket = ring.copy_to(dst, src)
    del dst, src
    ticket.synchronize()
    gc.collect()
    assert len(calls) == 2
    assert copies_in_flight(ring) == 0


def test_interrupt_at_any_line_of_copy_to_leaves_no_hold_and_no_memory(ring):
    def copy_on_hold() -> None:
        with ring.hold():
            ring.copy_to(torch.zeros(100), torch.ones(100)).synchronize()

    line = 1
    while interrupts.interrupt(copy_on_hold, line, FILES):
        assert_works(ring)
        assert ring.stats().num_slots == 0
        assert copies_in_flight(ring) == 0
        line += 1
    assert line > 20


INTERRUPTED_EXIT = """
import torch
from vitcache import PinnedRing, Ticket
ring = PinnedRing(1 << 16, num_threads=1, backend="host")
hold = ring.hold()
hold.__enter__()
src = torch.zeros(1 << 16, dtype=torch.uint8)
ring.copy_to(torch.zeros_like(src), src).synchronize()
print("waits", flush=True)
ring.copy_to(torch.zeros_like(src), src)
"""


def test_ctrl_c_ends_a_process_that_waits_in_copy_to():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_EXIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "waits\n"
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert stderr.endswith("KeyboardInterrupt\n")
