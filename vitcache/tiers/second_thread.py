"""`SecondThread`: hashes rows while the thread that calls a tier reads or writes the next ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from vitcache.device.worker_threads import WorkerThreads

_Works = SimpleQueue[Callable[[], None] | None]


class SecondThread:
    """One thread beside the thread that calls a tier. It starts with the first call that needs it."""

    def __init__(self) -> None:
        self._threads = WorkerThreads("vitcache-disk", 1, helps=False)

    def run_all(self, works: Iterable[Callable[[], None]]) -> None:
        """Run callables, which the caller yields one after the other, on the second thread.

        The caller helps when it has yielded the last one. All are done when the call returns or raises. If no
        thread can be started, the caller runs all of them.
        """
        queue: _Works = SimpleQueue()
        try:
            (future,) = self._threads.submit([lambda: _run_queued(queue)])
        except RuntimeError:  # no thread can be started, or the interpreter is exiting
            for work in works:
                work()
            return
        try:
            for work in works:
                queue.put(work)
        finally:
            queue.put(None)
            try:
                _run_queued(queue)
            finally:
                error = future.exception()
        if error is not None:
            raise error

    @contextmanager
    def runs(self, work: Callable[[], None]) -> Iterator[None]:
        """Run one callable beside the block. The end of the context waits, and raises its error."""
        try:
            (future,) = self._threads.submit([work])
        except RuntimeError:
            work()
            yield
            return
        try:
            yield
        finally:
            error = future.exception()
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread."""
        self._threads.close()


def _run_queued(queue: _Works) -> None:
    """Run callables until None, which stays in the queue for the other thread."""
    while (work := queue.get()) is not None:
        work()
    queue.put(None)
