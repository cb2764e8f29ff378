"""A cost-aware policy: what goes first saves the least encode time per page, by how often it is asked for."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from vitcache.policies.sketch import FrequencySketch

WINDOW_PART = 10
CLASSES_PER_DOUBLING = 2


class CostAware:
    """New keys pass through a window in the order of their last hit; those it gives up must be worth more than
    what the rest holds.

    The worth of a key is how often it was seen, times the cost of an encode, by the pages that it takes. How often
    is told by a sketch that also remembers keys that are not there. Keys of about the same worth go in the order
    of their last hit. The window and the sketch are those of W-TinyLFU (see `FrequencySketch`); the worth is that
    of GreedyDual-Size-Frequency (Cherkasova, 1998).
    """

    def __init__(self, capacity_pages: int) -> None:
        self._window_room = max(1, capacity_pages // WINDOW_PART)
        self._window: OrderedDict[bytes, None] = OrderedDict()
        self._window_pages = 0
        self._classes: dict[int, OrderedDict[bytes, None]] = {}
        self._class_of: dict[bytes, int] = {}  # of keys outside the window
        self._entries: dict[bytes, tuple[int, float]] = {}  # pages and cost
        self._sketch = FrequencySketch(capacity_pages)
        self._first_class = 0

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key to the window; what the window has too much moves on."""
        self._entries[key] = pages, cost
        self._count(key)
        self._window[key] = None
        self._window_pages += pages
        while self._window_pages > self._window_room and len(self._window) > 1:
            oldest, _ = self._window.popitem(last=False)
            self._window_pages -= self._entries[oldest][0]
            self._file(oldest)

    def touch(self, key: bytes) -> None:
        """Count a hit: the key is worth more, and the last of its class."""
        self._count(key)
        if key in self._window:
            self._window.move_to_end(key)
        else:
            self._unfile(key)
            self._file(key)

    def remove(self, key: bytes) -> None:
        """Take out a key; how often it was seen is remembered."""
        pages, _ = self._entries.pop(key)
        if key in self._window:
            del self._window[key]
            self._window_pages -= pages
        else:
            self._unfile(key)

    evict = remove

    def is_kept(self, key: bytes) -> bool:
        """Whether it was seen more than once: one pass over many keys shall write nothing back."""
        return self._sketch.count(key) > 1

    def victims(self) -> Iterator[bytes]:
        """Yield the keys from the least worth on; the window's as its last."""
        classes = (self._classes[number] for number in sorted(self._classes))
        return chain(chain.from_iterable(classes), self._window)

    def _count(self, key: bytes) -> None:
        # That everything is worth half of what it was needs no sorting anew: what comes is worth twice as much.
        if self._sketch.add(key):
            self._first_class += CLASSES_PER_DOUBLING

    def _file(self, key: bytes) -> None:
        pages, cost = self._entries[key]
        worth = self._sketch.count(key) * cost / pages
        number = self._first_class + math.floor(CLASSES_PER_DOUBLING * math.log2(max(worth, 1e-30)))
        self._class_of[key] = number
        self._classes.setdefault(number, OrderedDict())[key] = None

    def _unfile(self, key: bytes) -> None:
        number = self._class_of.pop(key)
        keys = self._classes[number]
        del keys[key]
        if not keys:
            del self._classes[number]
