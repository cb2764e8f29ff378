"""`SecondThread`: reads and hashes rows beside the thread that calls a tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vitcache.device.worker_threads import WorkerThreads


class SecondThread:
    """One thread beside the thread that calls a tier. It starts with the first call that needs it."""

    def __init__(self) -> None:
        self._threads = WorkerThreads("vitcache-disk", 1, helps=False)

    def share(self, works: Sequence[Callable[[], None]]) -> None:
        """Run callables on this and the second thread, each on the thread that is free first.

        All are done when the call returns. If no thread can be started, this thread runs all of them.
        """
        remaining = iter(works)  # its `next` is atomic

        def run() -> None:
            for work in remaining:
                work()

        with self.runs(run):
            try:
                run()
            finally:
                for _ in remaining:  # after an error the second thread takes no further ones
                    pass

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
