"""A cost-aware policy: what saves the least encode time per page, and was not hit lately, goes first."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from vitcache.cache.policies.seen_sketch import SeenSketch

CLASSES_PER_DOUBLING = 2
# While there are as many hits as keys, what is not hit loses three doublings of its worth.
FADING_PER_ROUND = 3 * CLASSES_PER_DOUBLING
# Whether new keys are hit is learned from about so many of the last ones.
LEARNED_FROM = 128
# With less of a chance, a new key is not worth a write. It is filed by this one: what was hit within the last
# round is worth more, even if its pages are half full.
LEAST_CHANCE = 1 / 16
# Below and above, in the caller's unit per page, all worths are alike.
LEAST_WORTH, MOST_WORTH = 2.0**-40, 2.0**40


class Filing:
    """What is known of a key: its worth, in classes, whether it was never hit, and its class."""

    __slots__ = ("is_new", "number", "worth")

    def __init__(self, worth: float) -> None:
        self.worth = worth
        self.is_new = True
        self.number = 0


class CostAware:
    """Keys of about the same worth are a class, and the class of the least worth goes first.

    The worth of a key is the cost of an encode by the pages that it takes. It fades exponentially, but time
    is counted in hits, so that one pass over many keys makes nothing old. Fading needs no filing anew: what
    is filed later is filed higher (forward decay: Cormode and others, 2009). In a class, the least recently
    inserted or hit key goes first.

    The worth of a new key is multiplied by the chance that it is ever hit, as it was with the last new keys.
    So where images come back, new ones are held as dear as others, and one pass over many soon evicts
    nothing that was hit lately, and has nothing written to the next tier. A key that comes back after it was
    evicted counts as hit.

    Cost by size is from GreedyDual-Size (Cao and Irani, 1997), a sketch that lets keys in from TinyLFU
    (Einziger and others, 2017).
    """

    def __init__(self, capacity_pages: int) -> None:
        self._filings: dict[bytes, Filing] = {}
        self._classes: dict[int, OrderedDict[bytes, None]] = {}
        self._numbers: list[int] = []  # of the classes, in ascending order
        self._evicted = SeenSketch(capacity_pages)
        self._now = 0.0  # in classes
        self._chance = 0.0  # that a new key is hit

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key."""
        worth = min(max(cost / pages, LEAST_WORTH), MOST_WORTH)
        filing = self._filings[key] = Filing(CLASSES_PER_DOUBLING * math.log2(worth))
        if key in self._evicted:
            self._note_hit(filing)
        else:
            self._chance -= self._chance / LEARNED_FROM
        self._file(key, filing)

    def touch(self, key: bytes) -> None:
        """File a key as high as it gets now."""
        filing = self._filings[key]
        self._unfile(key, filing)
        self._note_hit(filing)
        self._file(key, filing)

    def remove(self, key: bytes) -> None:
        """Take out a key."""
        self._unfile(key, self._filings.pop(key))

    def evict(self, key: bytes) -> None:
        """Take out a key and remember it for a while."""
        self.remove(key)
        self._evicted.add(key)

    def is_kept(self, key: bytes) -> bool:
        """Whether it was hit, or has a chance to be."""
        return not self._filings[key].is_new or self._chance > LEAST_CHANCE

    def victims(self) -> Iterator[bytes]:
        """Yield class by class, from the one of the least worth on."""
        return chain.from_iterable(self._classes[number] for number in self._numbers)

    def _note_hit(self, filing: Filing) -> None:
        self._now += FADING_PER_ROUND / len(self._filings)
        if filing.is_new:
            filing.is_new = False
            self._chance = min(self._chance + 1 / LEARNED_FROM, 1.0)

    def _file(self, key: bytes, filing: Filing) -> None:
        worth = filing.worth
        if filing.is_new:
            worth += CLASSES_PER_DOUBLING * math.log2(max(self._chance, LEAST_CHANCE))
        filing.number = math.floor(worth + self._now)
        keys = self._classes.get(filing.number)
        if keys is None:
            keys = self._classes[filing.number] = OrderedDict()
            insort(self._numbers, filing.number)
        keys[key] = None

    def _unfile(self, key: bytes, filing: Filing) -> None:
        keys = self._classes[filing.number]
        del keys[key]
        if not keys:
            del self._classes[filing.number]
            del self._numbers[bisect_left(self._numbers, filing.number)]
