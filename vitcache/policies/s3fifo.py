"""S3-FIFO: new keys wait in a small queue, and those that are hit there go to the main one.

The method is that of Yang and others, "FIFO queues are all you need for cache eviction", SOSP 2023: a small
queue of a tenth of the room, a main queue whose keys get another lap per hit, and a ghost queue that remembers
what left the small one, so that it goes straight to the main one when it comes back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

SMALL_PART = 10
MOST_HITS = 3


class S3Fifo:
    """Keys that are seen once leave soon, those that are hit stay."""

    def __init__(self, capacity_pages: int) -> None:
        self._small_room = max(1, capacity_pages // SMALL_PART)
        self._small: OrderedDict[bytes, int] = OrderedDict()  # key to pages
        self._main: OrderedDict[bytes, int] = OrderedDict()
        self._small_pages = 0
        self._hits: dict[bytes, int] = {}
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key to the small queue, or to the main one if it left the small one not long ago."""
        self._hits[key] = 0
        if key in self._ghosts:
            del self._ghosts[key]
            self._main[key] = pages
        else:
            self._small[key] = pages
            self._small_pages += pages

    def touch(self, key: bytes) -> None:
        """Count a hit, up to three."""
        self._hits[key] = min(self._hits[key] + 1, MOST_HITS)

    def remove(self, key: bytes) -> None:
        """Take out a key."""
        del self._hits[key]
        if key in self._small:
            self._small_pages -= self._small.pop(key)
        else:
            del self._main[key]

    def evict(self, key: bytes) -> None:
        """Take out a key, and let those before it in its queue pass: hit ones to or in the main queue."""
        in_small = key in self._small
        queue = self._small if in_small else self._main
        for other in list(self._before(queue, key)):
            if self._hits[other] == 0:
                continue  # it is leased
            if in_small:
                pages = self._small.pop(other)
                self._small_pages -= pages
                self._main[other] = pages
                self._hits[other] = 0
            else:
                self._main.move_to_end(other)
                self._hits[other] -= 1
        if in_small:
            self._ghosts[key] = None
            while len(self._ghosts) > max(1, len(self._hits)):
                self._ghosts.popitem(last=False)
        self.remove(key)

    def is_kept(self, key: bytes) -> bool:
        """Whether it was hit, or came back: what was seen once is not worth a write."""
        return key in self._main or self._hits[key] > 0

    def victims(self) -> Iterator[bytes]:
        """Yield from the small queue first if it is full; of each queue, the least hit and oldest first."""
        small_first = self._small_pages >= self._small_room or not self._main
        if small_first:
            yield from self._with_hits(self._small, 0)
        for hits in range(MOST_HITS + 1):
            yield from self._with_hits(self._main, hits)
        for hits in range(small_first, MOST_HITS + 1):
            yield from self._with_hits(self._small, hits)

    def _with_hits(self, queue: OrderedDict[bytes, int], hits: int) -> Iterator[bytes]:
        return (key for key in queue if self._hits[key] == hits)

    @staticmethod
    def _before(queue: OrderedDict[bytes, int], key: bytes) -> Iterator[bytes]:
        for other in queue:
            if other == key:
                return
            yield other
