"""`RowSums`: checksums of rows, computed by one thread while the next rows are read or written."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

from vitcache.device.worker_threads import WorkerThreads
from vitcache.keys.digests import new_hasher

# Fewer bytes are hashed by the caller, as the change of threads takes as long.
_SMALL_BYTES = 128 << 10


class RowSums:
    """Makes checksums. One thread calls its methods; one more thread hashes, in the order of the calls."""

    def __init__(self) -> None:
        self._threads = WorkerThreads("vitcache-row-sums", 1)
        self._futures: list[Future[None]] = []

    def begin(self) -> RowSum:
        """Return a checksum of no bytes yet."""
        return RowSum(self._threads, self._futures)

    def wait(self) -> None:
        """Wait until no memory is read any more. Errors are those of `RowSum.digest`."""
        while self._futures:
            self._futures[-1].exception()
            self._futures.pop()

    def close(self) -> None:
        """End the thread."""
        self._threads.close()


class RowSum:
    """The checksum of one entry's rows."""

    def __init__(self, threads: WorkerThreads, futures: list[Future[None]]) -> None:
        self._hasher = new_hasher()
        self._threads, self._all = threads, futures
        self._futures: list[Future[None]] = []

    def add(self, views: Iterable[memoryview]) -> None:
        """Hash more bytes. The memory must be valid and unchanged until `digest` or `RowSums.wait`."""
        given = list(views)
        if not self._futures and sum(map(len, given)) < _SMALL_BYTES:
            _update(self._hasher, given)
            return
        queued = self._threads.submit([partial(_update, self._hasher, given)])
        self._all += queued
        self._futures += queued

    def digest(self) -> bytes:
        """Wait for the thread, and return the checksum, 32 bytes."""
        for future in self._futures:
            future.result()
        return bytes(self._hasher.digest())


def _update(hasher: Any, views: list[memoryview]) -> None:
    for view in views:
        hasher.update(view)
