"""`HashShares`: how many threads hash each item, so that all items together never use more than a limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from vitcache.device.locks import new_lock
from vitcache.device.worker_threads import WorkerThreads


class HashShares:
    """Divides the threads that hash among the items.

    `workers` has the state of all items. This object does not refer to it, so that it can be collected.
    """

    def __init__(self, workers: WorkerThreads) -> None:
        self._threads, self._unfinished = workers.threads, workers.unfinished
        self._hashing: set[int] = set()  # the worker threads that hash an item
        self._free: SimpleQueue[None] = SimpleQueue()  # an element for each thread that hashes no item
        for _ in range(workers.num_threads):
            self._free.put(None)
        self._lock = new_lock()  # one item takes its share at a time

    @contextmanager
    def share(self) -> Iterator[int]:
        """Take some of the free threads, at least one, and give them back at the end of the context.

        If there are fewer items than threads, the items share all threads. An item that hashes keeps its
        share. On a submitting thread, which hashes only if no other thread can be started, the share is one.
        """
        if threading.current_thread() not in self._threads:
            yield 1
            return
        # No interrupt occurs from here on: Python raises them in the main thread only.
        thread = threading.get_ident()
        with self._lock:
            self._free.get()
            waiting = len(self._unfinished) - len(self._hashing)  # with this item
            count = max((self._free.qsize() + 1) // max(waiting, 1), 1)
            for _ in range(count - 1):
                self._free.get()
            self._hashing.add(thread)
        try:
            yield count
        finally:
            self._hashing.discard(thread)
            for _ in range(count):
                self._free.put(None)
