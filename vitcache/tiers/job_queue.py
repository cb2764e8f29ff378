"""`JobQueue`: the jobs that wait for a tier's worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

from vitcache.device.locks import new_lock
from vitcache.tiers.tier_jobs import Barrier, EraseJob, FetchJob, RevokeJob, StoreJob

MOST_FETCHES = 64

_Job = EraseJob | RevokeJob | FetchJob | StoreJob | Barrier


class JobQueue:
    """Three queues: revokes and erases are taken first, then fetches, then stores.

    Any thread adds jobs, and never waits; only the worker takes them. A store takes its rows from the cache
    when it runs, so a store of an entry that was dropped does nothing, and an erase may overtake it. The
    queues of fetches and of stores are bounded.

    Attributes
    ----------
    wake
        Receives None for each call that adds jobs, and another object when the worker must end.
    fetches
        The fetches that are queued or run, the oldest first, with their numbers.
    """

    def __init__(self, store_bytes: int) -> None:
        self.wake: SimpleQueue[Any] = SimpleQueue()
        self.fetches: dict[FetchJob, None] = {}
        self._urgent: deque[EraseJob | RevokeJob] = deque()
        self._waiting: deque[FetchJob] = deque()
        self._stores: deque[StoreJob | Barrier] = deque()
        self._lock = new_lock()
        self._most_store_bytes = store_bytes
        # Two sums, so that `take` needs no lock: a signal handler may wait for the worker while the thread
        # that it has interrupted holds the lock.
        self._added_bytes = 0
        self._taken_bytes = 0

    def add_urgent(self, job: EraseJob | RevokeJob) -> None:
        """Add a revoke, which is taken first, or an erase."""
        try:
            if isinstance(job, RevokeJob):
                self._urgent.appendleft(job)
            else:
                self._urgent.append(job)
        finally:
            self.wake.put(None)

    def add_fetch(self, job: FetchJob) -> bool:
        """Add a fetch. False: too many wait."""
        if len(self._waiting) >= MOST_FETCHES:
            return False
        try:
            self.fetches[job] = None
            self._waiting.append(job)
        finally:
            self.wake.put(None)
        return True

    def add_stores(self, jobs: Sequence[StoreJob]) -> list[StoreJob]:
        """Add stores, and return those that do not fit within the limit."""
        refused = []
        try:
            for job in jobs:
                with self._lock:
                    waiting_bytes = self._added_bytes - self._taken_bytes
                    has_room = waiting_bytes + job.num_bytes <= self._most_store_bytes
                    if has_room:
                        self._added_bytes += job.num_bytes
                        self._stores.append(job)
                if not has_room:
                    refused.append(job)
        finally:
            self.wake.put(None)
        return refused

    def add_barrier(self, barrier: Barrier) -> None:
        """Add a barrier behind all stores."""
        try:
            self._stores.append(barrier)
        finally:
            self.wake.put(None)

    def take(self) -> _Job | None:
        """Return the next job, or None. A fetch stays in `fetches` until the worker removes it."""
        for jobs in (self._urgent, self._waiting, self._stores):
            try:
                job: _Job = jobs.popleft()
            except IndexError:
                continue
            if isinstance(job, StoreJob):
                self._taken_bytes += job.num_bytes
            return job
        return None
