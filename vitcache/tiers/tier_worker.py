"""`TierWorker`: the thread that alone calls a tier."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic
from typing import Any

from vitcache.device.thread_start import start_threads
from vitcache.tiers.books import Books
from vitcache.tiers.protocol import Tier
from vitcache.tiers.tier_runner import TierRunner
from vitcache.tiers.worth import WorthRule

logger = logging.getLogger("vitcache.tiers")

# How long the end of a cache, or of the interpreter, waits for stores that are queued and for `Tier.close`.
CLOSE_S = 5.0


class TierWorker:
    """One tier and its thread, which starts at once and opens the tier.

    Any thread may call `close`. The thread ends when this object is closed or garbage-collected; it then runs
    the stores that wait, for at most `CLOSE_S` seconds, and closes the tier. At exit of the interpreter it is
    the same. The thread is a daemon: a tier that hangs delays the end by `CLOSE_S` seconds, and no more. A
    forked child has no thread, and its tiers are off: every fetch misses, and nothing is stored or erased.

    Parameters
    ----------
    books
        The cache. The thread keeps it alive until it ends.
    store_bytes
        Most bytes of entries that wait to be stored.
    clock
        Returns the time in seconds, for the breaker.
    rule
        Which entries are worth their transfer.

    Attributes
    ----------
    runner
        The jobs. It does not refer to the cache or to this object.

    Raises
    ------
    RuntimeError
        If the process cannot start a thread.
    """

    def __init__(
        self, tier: Tier, books: Books, store_bytes: int, clock: Callable[[], float], rule: WorthRule
    ) -> None:
        self.runner = TierRunner(tier, store_bytes, clock, rule)
        wake = self.runner.jobs.wake
        # Ends the thread when this object is freed. The thread keeps this reference. A `__del__` would be
        # Python code, which an interrupt can stop before it has done anything.
        self._end = weakref.ref(self, wake.put)
        self._thread = threading.Thread(
            target=_run,
            args=(self.runner, books, wake, self._end),
            name=f"vitcache-tier-{tier.name}",
            daemon=True,  # or the interpreter would wait for a tier that hangs
        )
        _running[self._thread] = self.runner  # before it starts: a fork or an exit must not miss it
        if not start_threads(self._thread.start):
            _running.pop(self._thread, None)
            raise RuntimeError(f"the process cannot start the thread of tier {tier.name!r}")

    def begin_close(self) -> None:
        """Let the thread run the stores that wait, close the tier, and end. A second call does nothing."""
        _begin_end(self.runner)

    def join(self, end: float) -> bool:
        """Wait for the end of the thread until the time `end` of `time.monotonic`. False: it still runs.

        The tier's own thread does not wait for itself.
        """
        return self.runner.is_off or _join(self._thread, end)

    @property
    def is_own_thread(self) -> bool:
        """Whether the tier has called back into the cache."""
        return threading.current_thread() is self._thread


_running: dict[threading.Thread, TierRunner] = {}  # changed by C functions alone


def _run(runner: TierRunner, books: Books, wake: SimpleQueue[Any], end: weakref.ref[TierWorker]) -> None:
    try:
        with books.on_own_stream():
            try:
                runner.open(books)
                while wake.get() is None and not runner.is_off:
                    runner.run_all(books)
            finally:
                if runner.stop_at == float("inf"):  # the cache was freed without `close`
                    runner.stop_at = monotonic() + CLOSE_S
                runner.end(books)
    except BaseException:
        logger.exception("the thread of tier %r has failed", runner.name)
    finally:
        _running.pop(threading.current_thread(), None)


def _begin_end(runner: TierRunner) -> None:
    if not runner.is_ending:
        runner.stop_at = monotonic() + CLOSE_S
        runner.is_ending = True
    runner.jobs.wake.put(False)


def _join(thread: threading.Thread, end: float) -> bool:
    if threading.current_thread() is not thread:
        while thread.is_alive() and (left := end - monotonic()) > 0:
            thread.join(min(left, 1.0))  # a signal may arrive just before the wait begins
    return not thread.is_alive()


def _lose_all_in_child() -> None:
    for runner in tuple(_running.values()):
        runner.lose()
    _running.clear()


os.register_at_fork(after_in_child=_lose_all_in_child)


@atexit.register
def _end_all() -> None:
    """Run the stores that wait, and close all tiers, within `CLOSE_S` seconds."""
    running = tuple(_running.items())
    for _, runner in running:
        _begin_end(runner)
    end = monotonic() + CLOSE_S
    for thread, _ in running:
        if thread.ident is not None:
            _join(thread, end)
