"""A cost-aware policy: what saves the least encode time per page, and was not hit lately, goes first."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from vitcache.policies.seen_sketch import SeenSketch

CLASSES_PER_DOUBLING = 2
# While there are as many hits as entries, what is not hit loses four doublings of its worth.
FADING_PER_ROUND = 4 * CLASSES_PER_DOUBLING
# What was seen once is worth so much less: a round of hits, and one doubling for pages that are half full.
ONCE = FADING_PER_ROUND + CLASSES_PER_DOUBLING
# Below and above, in the caller's unit per page, all worths are alike.
LEAST_WORTH, MOST_WORTH = 2.0**-40, 2.0**40


class CostAware:
    """Keys of about the same worth are a class, and the class of the least worth goes first.

    The worth of a key is the cost of an encode by the pages that it takes. It fades exponentially, but time
    is counted in hits, so that one pass over many keys makes nothing old. Fading needs no filing anew: what
    is filed later is filed higher (forward decay: Cormode and others, 2009). A key that was never hit, and
    is not in the sketch of those evicted lately either, is filed lower: one pass evicts nothing that is
    worth as much and was hit within the last round, which is as many hits as there are keys. In a class, the
    least recently inserted or hit key goes first.

    Cost by size is from GreedyDual-Size (Cao and Irani, 1997), the sketch from TinyLFU (Einziger and others,
    2017).
    """

    def __init__(self, capacity_pages: int) -> None:
        self._classes: dict[int, OrderedDict[bytes, None]] = {}
        self._numbers: list[int] = []  # of the classes, in ascending order
        self._number_of: dict[bytes, int] = {}
        self._worths: dict[bytes, float] = {}  # in classes
        self._once: set[bytes] = set()
        self._evicted = SeenSketch(capacity_pages)
        self._now = 0.0  # in classes

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key; one that is back soon after it was evicted counts as hit."""
        worth = min(max(cost / pages, LEAST_WORTH), MOST_WORTH)
        self._worths[key] = CLASSES_PER_DOUBLING * math.log2(worth)
        if key in self._evicted:
            self._pass_time()
        else:
            self._once.add(key)
        self._file(key)

    def touch(self, key: bytes) -> None:
        """File a key as high as it gets now."""
        self._pass_time()
        self._once.discard(key)
        self._unfile(key)
        self._file(key)

    def remove(self, key: bytes) -> None:
        """Take out a key."""
        self._unfile(key)
        self._once.discard(key)
        del self._worths[key]

    def evict(self, key: bytes) -> None:
        """Take out a key and remember it for a while."""
        self._evicted.add(key)
        self.remove(key)

    def is_kept(self, key: bytes) -> bool:
        """Whether it was hit, or came back: what was seen once is not worth a write."""
        return key not in self._once

    def victims(self) -> Iterator[bytes]:
        """Yield class by class, from the one of the least worth on."""
        return chain.from_iterable(self._classes[number] for number in self._numbers)

    def _pass_time(self) -> None:
        self._now += FADING_PER_ROUND / len(self._worths)

    def _file(self, key: bytes) -> None:
        number = math.floor(self._worths[key] + self._now - (ONCE if key in self._once else 0))
        self._number_of[key] = number
        keys = self._classes.get(number)
        if keys is None:
            keys = self._classes[number] = OrderedDict()
            insort(self._numbers, number)
        keys[key] = None

    def _unfile(self, key: bytes) -> None:
        number = self._number_of.pop(key)
        keys = self._classes[number]
        del keys[key]
        if not keys:
            del self._classes[number]
            del self._numbers[bisect_left(self._numbers, number)]
