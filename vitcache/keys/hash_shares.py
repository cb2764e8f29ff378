"""`HashShares`: how many threads hash each item, so that all items together never use more than a limit."""

from __future__ import annotations

import os
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
        self._num_threads = workers.num_threads
        self._lock = new_lock()  # one item takes its share at a time
        self._fill()

    def _fill(self) -> None:
        self._hashing: set[int] = set()  # the worker threads that take a share or have one
        self._free: SimpleQueue[None] = SimpleQueue()  # an element for each thread that hashes no item
        for _ in range(self._num_threads):
            self._free.put(None)
        self._pid = os.getpid()

    @contextmanager
    def share(self) -> Iterator[int]:
        """Take some of the free threads, at least one, and give them back at the end of the context.

        If there are fewer items than threads, the items share all threads. An item that hashes keeps its
        share. The share is one on a thread that is none of the workers, which hashes only if a worker cannot,
        and in a call-back on a worker that has a share already.
        """
        if self._pid != os.getpid():
            self._renew_in_child()
        thread = threading.get_ident()
        if threading.current_thread() not in self._threads or thread in self._hashing:
            yield 1
            return
        # No interrupt occurs from here on: Python raises them in the main thread only. But a finalizer, which
        # the garbage collector calls, may hash an item.
        with self._lock:
            waiting = len(self._unfinished) - len(self._hashing)  # with this item
            self._hashing.add(thread)
            free, hashing = self._free, self._hashing
            free.get()
            count = max((free.qsize() + 1) // max(waiting, 1), 1)
            for _ in range(count - 1):
                free.get()
        try:
            yield count
        finally:
            hashing.discard(thread)
            for _ in range(count):
                free.put(None)

    def _renew_in_child(self) -> None:
        """Make all shares free, since the threads that had some do not exist in this forked child."""
        with self._lock:
            if self._pid != os.getpid():
                self._fill()
