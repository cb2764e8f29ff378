"""`SecondThread`: takes pieces of a call, so that one thread reads while the other one hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vitcache.device.worker_threads import WorkerThreads


class SecondThread:
    """One thread beside the thread that calls a tier. It starts with the first call that needs it."""

    def __init__(self) -> None:
        self._threads = WorkerThreads("vitcache-disk", 1)

    @contextmanager
    def runs(self, work: Callable[[], None]) -> Iterator[None]:
        """Run `work` on the thread beside the block. The end of the context waits, and raises its error."""
        (future,) = self._threads.submit([work])
        try:
            yield
        finally:
            error = future.exception()
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread."""
        self._threads.close()
