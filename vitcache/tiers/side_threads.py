"""`SideThreads`: read and hash rows beside the thread that calls a tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vitcache.device.worker_threads import WorkerThreads

# Beside the caller's: the disk has several requests while two threads hash.
_NUM_THREADS = 4


class SideThreads:
    """Four threads beside the thread that calls a tier. They start with the first call that needs them."""

    def __init__(self) -> None:
        self._threads = WorkerThreads("vitcache-disk", _NUM_THREADS, helps=False)

    def share(self, works: Sequence[Callable[[], None]]) -> None:
        """Run callables on this and the side threads, each on the thread that is free first.

        All are done when the call returns. Each thread has work for two callables: a read of one overlaps the
        hash of another. If no thread can be started, this thread runs all of them.
        """
        remaining = iter(works)  # its `next` is atomic

        def run() -> None:
            for work in remaining:
                work()

        with self._beside([run] * min(_NUM_THREADS, len(works) // 2)):
            try:
                run()
            finally:
                for _ in remaining:  # after an error the side threads take no further ones
                    pass

    @contextmanager
    def runs(self, work: Callable[[], None]) -> Iterator[None]:
        """Run one callable beside the block. The end of the context waits, and raises its error."""
        with self._beside([work]):
            yield

    @contextmanager
    def _beside(self, works: Sequence[Callable[[], None]]) -> Iterator[None]:
        try:
            futures = self._threads.submit(works)
        except RuntimeError:
            for work in works:
                work()
            yield
            return
        try:
            yield
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        self._threads.close()
