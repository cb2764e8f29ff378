"""S3-FIFO: new keys wait in a small queue, and those that are asked for again move to the main one.

The method is that of Yang and others, "FIFO queues are all you need for cache eviction", SOSP 2023: a small
queue with a tenth of the room, a main queue whose keys get another lap per hit, and a ghost queue that
remembers what left the small one, so that it goes straight to the main one when it comes back. There, a walk
over the queues finds the victim and gives those that were hit their other lap. Here, nobody waits for a
walk: a hit moves its key at once, to the main queue or to a later lap of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

SMALL_PART = 10
MOST_LAPS = 3


class S3Fifo:
    """Keys that are seen once leave soon, those that are hit stay."""

    def __init__(self, capacity_pages: int) -> None:
        self._small_room = max(1, capacity_pages // SMALL_PART)
        self._small: OrderedDict[bytes, int] = OrderedDict()  # key to pages
        self._small_pages = 0
        self._lap = 0  # that is walked now: the lowest with keys, or one before
        self._laps: dict[int, OrderedDict[bytes, None]] = {}
        self._lap_of: dict[bytes, int] = {}  # of keys in the main queue
        self._ghosts: OrderedDict[bytes, None] = OrderedDict()

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key to the small queue, or to the main one if it left the small one not long ago."""
        if key in self._ghosts:
            del self._ghosts[key]
            self._join(key, self._lap + 1)
        else:
            self._small[key] = pages
            self._small_pages += pages

    def touch(self, key: bytes) -> None:
        """Move a key to the main queue, or give it another lap there, up to three."""
        if key in self._small:
            self._small_pages -= self._small.pop(key)
            self._join(key, self._lap + 1)
        else:
            lap = max(self._lap, self._leave(key))  # one that is leased may have been left behind
            self._join(key, min(lap + 1, self._lap + MOST_LAPS))

    def remove(self, key: bytes) -> None:
        """Take out a key."""
        if key in self._small:
            self._small_pages -= self._small.pop(key)
        else:
            self._leave(key)

    def evict(self, key: bytes) -> None:
        """Take out a key; one from the small queue is remembered until as many have left as are here."""
        if key in self._small:
            self._ghosts[key] = None
        else:
            self._lap = max(self._lap, self._lap_of[key])
        self.remove(key)
        for _ in range(2):  # one may be too many for this key, and one for a key that was removed
            if len(self._ghosts) > max(1, len(self._small) + len(self._lap_of)):
                self._ghosts.popitem(last=False)

    def is_kept(self, key: bytes) -> bool:
        """Whether it was hit, or came back: what was seen once is not worth a write."""
        return key in self._lap_of

    def victims(self) -> Iterator[bytes]:
        """Yield from the small queue first if it is full; of each, the first to come round first."""
        main = chain.from_iterable(self._laps[lap] for lap in sorted(self._laps))
        return chain(self._small, main) if self._small_pages >= self._small_room else chain(main, self._small)

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
