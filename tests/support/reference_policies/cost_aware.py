"""The policy "cost": evicts the key that saves the least encode time per page and was not hit recently."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from reference_policies.seen_sketch import SeenSketch

CLASSES_PER_DOUBLING = 2
# In a round, which is one hit per key on average, the value of a key that is not hit fades to an eighth.
FADING_PER_ROUND = 3 * CLASSES_PER_DOUBLING
# The hit chance of a new key is a moving average over about this number of new keys.
LEARNED_FROM = 128
# If the hit chance is lower, a new key is not worth a copy to the next tier, and its value is computed with
# this chance. Then a key that was hit within the last round has a higher value than the new key, even if the
# pages of the hit key are half full.
LEAST_CHANCE = 1 / 16
# Values, in the caller's unit per page, are clamped to this range.
LEAST_VALUE, MOST_VALUE = 2.0**-40, 2.0**40


class KeyRecord:
    """A key's value before fading, as a number of classes; whether the key was never hit; and its class."""

    __slots__ = ("class_number", "is_new", "value")

    def __init__(self, value: float) -> None:
        self.value = value
        self.is_new = True
        self.class_number = 0


class CostAware:
    """Evicts the class of keys that has the lowest value. A class contains keys of about the same value.

    The value of a key is its encode cost divided by its number of pages. It fades exponentially. Time is
    counted in hits, so a single pass over many keys does not age the other keys. Fading moves no key to
    another class: keys that are inserted or hit later enter higher classes (forward decay: Cormode and
    others, 2009). Within a class, the key whose insertion or last hit is the longest ago is evicted first.

    The value of a new key is multiplied by the chance that a new key is ever hit, which is learned from the
    last new keys. If nearly all images are repeated, a new key has about the value of a key that was hit. In
    a single pass over many images the chance falls: soon new keys evict no key that was hit recently, and are
    not copied to the next tier. A key that is inserted again after its eviction counts as hit.

    Cost divided by size is from GreedyDual-Size (Cao and Irani, 1997), the sketch of seen keys from TinyLFU
    (Einziger and others, 2017).
    """

    def __init__(self, capacity_pages: int) -> None:
        self._records: dict[bytes, KeyRecord] = {}
        self._classes: dict[int, OrderedDict[bytes, None]] = {}
        self._class_numbers: list[int] = []  # in ascending order
        self._evicted = SeenSketch(capacity_pages)
        self._fading = 0.0  # of all values since the start, as a number of classes
        self._hit_chance = 0.0  # of a new key

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key."""
        value = min(max(cost / pages, LEAST_VALUE), MOST_VALUE)
        record = self._records[key] = KeyRecord(CLASSES_PER_DOUBLING * math.log2(value))
        if key in self._evicted:
            self._record_hit(record)
        else:
            self._hit_chance -= self._hit_chance / LEARNED_FROM
        self._enter_class(key, record)

    def touch(self, key: bytes) -> None:
        """Record a hit: move a key to the class of its value before fading."""
        record = self._records[key]
        self._leave_class(key, record)
        self._record_hit(record)
        self._enter_class(key, record)

    def remove(self, key: bytes) -> None:
        """Remove a key."""
        self._leave_class(key, self._records.pop(key))

    def evict(self, key: bytes) -> None:
        """Remove a key, and remember it in the sketch."""
        self.remove(key)
        self._evicted.add(key)

    def is_worth_copy(self, key: bytes) -> bool:
        """Whether the key was hit, or new keys have a sufficient chance to be hit."""
        return not self._records[key].is_new or self._hit_chance > LEAST_CHANCE

    def victims(self) -> Iterator[bytes]:
        """Yield class by class, the lowest value first."""
        return chain.from_iterable(self._classes[number] for number in self._class_numbers)

    def _record_hit(self, record: KeyRecord) -> None:
        self._fading += FADING_PER_ROUND / len(self._records)
        if record.is_new:
            record.is_new = False
            self._hit_chance = min(self._hit_chance + 1 / LEARNED_FROM, 1.0)

    def _enter_class(self, key: bytes, record: KeyRecord) -> None:
        value = record.value
        if record.is_new:
            value += CLASSES_PER_DOUBLING * math.log2(max(self._hit_chance, LEAST_CHANCE))
        number = record.class_number = math.floor(value + self._fading)
        keys = self._classes.get(number)
        if keys is None:
            keys = self._classes[number] = OrderedDict()
            insort(self._class_numbers, number)
        keys[key] = None

    def _leave_class(self, key: bytes, record: KeyRecord) -> None:
        number = record.class_number
        keys = self._classes[number]
        del keys[key]
        if not keys:
            del self._classes[number]
            del self._class_numbers[bisect_left(self._class_numbers, number)]
