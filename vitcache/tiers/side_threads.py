"""`SideThreads`: read and hash rows beside the thread that calls a tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from vitcache.device.worker_threads import WorkerThreads


class SideThreads:
    """Threads beside the thread that calls a tier. They start with the first calls that need them.

    One thread at a time calls the methods. The process ends without the threads if a tier hangs: its owner
    decides for how long it waits for its calls.

    Parameters
    ----------
    name
        Of the threads.
    count
        Most threads.
    """

    def __init__(self, name: str, count: int) -> None:
        self._count = count
        self._threads = WorkerThreads(name, count, helps=False, finishes=False)

    def share(self, works: Sequence[Callable[[], None]]) -> None:
        """Run callables on this and the side threads, each on the thread that is free first.

        All are done when the call returns. There are two callables for each side thread, or more: the read of
        one overlaps the hash of another. If no thread can be started, this thread runs all of them.
        """
        remaining = iter(works)  # its `next` is atomic

        def run() -> None:
            for work in remaining:
                work()

        def run_here() -> None:
            try:
                run()
            finally:
                for _ in remaining:  # after an error the side threads take no further ones
                    pass

        self._run([run] * min(self._count, len(works) // 2), run_here)

    def run_both(self, work: Callable[[], None], here: Callable[[], None]) -> None:
        """Run a callable on a side thread, and another one on this thread. Both are done at the end."""
        self._run([work], here)

    def _run(self, works: Sequence[Callable[[], None]], here: Callable[[], None]) -> None:
        futures: list[Future[None]] = []
        try:
            try:
                futures = self._threads.submit(works)
            except RuntimeError:  # no thread can be started
                for work in works:
                    work()
            here()
        finally:
            self._wait()
        for future in futures:
            future.result()

    def _wait(self) -> None:
        """Wait until no side thread uses the memory of a call."""
        try:
            for job in tuple(self._threads.unfinished):
                while not job.done():
                    job.exception()
        except BaseException:  # an interrupt has ended the wait
            self._wait()
            raise

    def close(self) -> None:
        """End the threads."""
        self._threads.close()
