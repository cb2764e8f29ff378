"""The policy "s3fifo": new keys enter a small queue, and a hit moves them to the main queue.

The method is from Yang and others, "FIFO queues are all you need for cache eviction", SOSP 2023. The small
queue has a tenth of the pages. In the main queue, each hit gives a key another lap before it is evicted. The
ghost queue remembers keys that were evicted from the small queue: if they are inserted again, they enter the
main queue. In the paper, the search for a victim walks over the queues and moves each key that was hit to its
next lap. Here the hit itself moves its key, to the main queue or to a later lap, so no eviction waits for a
walk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

SMALL_PART = 10
MOST_LAPS = 3


class S3Fifo:
    """Evicts from the small queue of new keys while it is full, and from the main queue otherwise."""

    def __init__(self, capacity_pages: int) -> None:
        self._small_capacity = max(1, capacity_pages // SMALL_PART)
        self._small: OrderedDict[bytes, int] = OrderedDict()  # key to pages
        self._small_pages = 0
        self._lap = 0  # the latest lap that a victim was in
        self._laps: dict[int, OrderedDict[bytes, None]] = {}  # the main queue
        self._lap_of: dict[bytes, int] = {}  # of keys in the main queue
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key to the small queue, or to the main queue if the ghost queue contains it."""
        if key in self._ghosts:
            del self._ghosts[key]
            self._join(key, self._lap + 1)
        else:
            self._small[key] = pages
            self._small_pages += pages

    def touch(self, key: bytes) -> None:
        """Move a key to the main queue or, in it, one lap later: at most `MOST_LAPS` laps after `_lap`."""
        if key in self._small:
            self._small_pages -= self._small.pop(key)
            self._join(key, self._lap + 1)
        else:
            lap = max(self._lap, self._leave(key))  # a leased key may be in an earlier lap than `_lap`
            self._join(key, min(lap + 1, self._lap + MOST_LAPS))

    def remove(self, key: bytes) -> None:
        """Remove a key."""
        if key in self._small:
            self._small_pages -= self._small.pop(key)
        else:
            self._leave(key)
        # The ghost queue is limited to the length of the other two queues together. An eviction adds a ghost
        # and shortens another queue, so up to two ghosts are removed.
        while len(self._ghosts) > max(1, len(self._small) + len(self._lap_of)):
            self._ghosts.popitem(last=False)

    def evict(self, key: bytes) -> None:
        """Remove a key. If it is in the small queue, add it to the ghost queue."""
        if key in self._small:
            self._ghosts[key] = None
        else:
            self._lap = max(self._lap, self._lap_of[key])
        self.remove(key)

    def is_worth_copy(self, key: bytes) -> bool:
        """Whether the key is in the main queue: it was hit, or inserted again soon after its eviction."""
        return key in self._lap_of

    def victims(self) -> Iterator[bytes]:
        """Yield the small queue first if it is full, else the main queue first; each in its order."""
        main = chain.from_iterable(self._laps[lap] for lap in sorted(self._laps))
        return (
            chain(self._small, main)
            if self._small_pages >= self._small_capacity
            else chain(main, self._small)
        )

    def _join(self, key: bytes, lap: int) -> None:
        self._lap_of[key] = lap
        self._laps.setdefault(lap, OrderedDict())[key] = None

    def _leave(self, key: bytes) -> int:
        lap = self._lap_of.pop(key)
        keys = self._laps[lap]
        del keys[key]
        if not keys:
            del self._laps[lap]
        return lap
