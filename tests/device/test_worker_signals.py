"""`WorkerThreads` that are freed: by calls interrupted by real signals at random times, or at any line."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from interrupts import interrupt

from vitcache.device import thread_start, worker_threads
from vitcache.device.worker_threads import WorkerThreads

SECONDS = 30  # limit of each wait: a test that hangs then fails
ROUNDS = 400


class Interrupt(BaseException):
    """Raised by the handler of the signal."""


@pytest.fixture
def interrupt_in() -> Iterator[Callable[[float], object]]:
    """Return a function that has the main thread interrupted after some seconds."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handle)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def use_and_close() -> None:
    threads = WorkerThreads("signals", 2)
    for future in threads.submit([lambda: 1] * 3):
        assert future.result(SECONDS) == 1
    threads.close()


def use_and_drop() -> None:
    WorkerThreads("signals", 2).submit([lambda: 1] * 3)


def any_runs() -> bool:
    return any(thread.name.startswith("signals") for thread in worker_threads._queues)


def wait_for_the_ends() -> None:
    gc.collect()
    limit = time.monotonic() + SECONDS
    while any_runs() and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any_runs()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_worker_threads_dropped_by_a_call_that_is_interrupted_at_any_line_end() -> None:
    line = 1
    while interrupt(use_and_drop, line, {worker_threads.__file__, thread_start.__file__}):
        line += 1
    assert line > 20
    wait_for_the_ends()


@pytest.mark.parametrize("use", [use_and_close, use_and_drop])
# An interrupt while Python itself runs a callback of a weak reference is printed, and not raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_worker_threads_interrupted_by_signals_end_their_threads_once_they_are_freed(
    use: Callable[[], None], interrupt_in: Callable[[float], object]
) -> None:
    numbers, interrupted = random.Random(7), 0
    for _ in range(ROUNDS):
        try:
            interrupt_in(1e-6 + 4e-4 * numbers.random())
            use()
            interrupt_in(0)
        except Interrupt:
            interrupted += 1
        except RuntimeError as error:  # the standard library raises it in `Condition.wait`
            if not isinstance(error.__context__, Interrupt):
                raise
            interrupted += 1
    interrupt_in(0)
    wait_for_the_ends()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("signals")]
    assert interrupted > ROUNDS // 10
    use_and_close()
