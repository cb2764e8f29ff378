"""A count-min sketch: how often keys were seen lately, in a fixed number of bytes."""

from __future__ import annotations

ROWS = 4
MOST = 15


class FrequencySketch:
    """Counts up to 15 per key, never too few; all are halved once in a while, so that old ones fade.

    The keys are digests, so their own bytes serve as hashes. The halving is that of TinyLFU (Einziger, Friedman,
    Manes, "TinyLFU: a highly efficient cache admission policy", 2017).

    Parameters
    ----------
    counters
        Counters of each of the four rows; rounded up to a power of two. Halved after ten times as many counts.
    """

    def __init__(self, counters: int) -> None:
        size = 1 << max(4, (counters - 1).bit_length())
        self._mask = size - 1
        self._rows = [bytearray(size) for _ in range(ROWS)]
        self._counts_left = self._period = 10 * size

    def add(self, key: bytes) -> bool:
        """Count a key; whether all counts were halved thereafter."""
        places = self._places(key)
        least = min(row[place] for row, place in zip(self._rows, places, strict=True))
        if least < MOST:
            for row, place in zip(self._rows, places, strict=True):
                if row[place] == least:  # the others count other keys, too
                    row[place] += 1
        self._counts_left -= 1
        if self._counts_left:
            return False
        self._counts_left = self._period
        halves = bytes(count // 2 for count in range(256))
        self._rows = [bytearray(row.translate(halves)) for row in self._rows]
        return True

    def count(self, key: bytes) -> int:
        """Return how often a key was seen, or a little more."""
        return min(row[place] for row, place in zip(self._rows, self._places(key), strict=True))

    def _places(self, key: bytes) -> tuple[int, int, int, int]:
        mask, number = self._mask, int.from_bytes(key[:16], "little")
        return number & mask, number >> 32 & mask, number >> 64 & mask, number >> 96 & mask
