"""A sketch of the keys that were seen recently, in a fixed number of bits."""

from __future__ import annotations

import struct

BITS_PER_KEY = 32
LEAST_BITS = 64
WORD = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15


def mix(number: int) -> int:
    """The mixing step of SplitMix64."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & WORD
    number = (number ^ number >> 27) * 0x94D049BB133111EB & WORD
    return number ^ number >> 31


def hash_key(key: bytes) -> int:
    """`KeyHash` of csrc/cache/key.h."""
    number = 0
    for word in struct.unpack("=4Q", key):
        number = (number ^ word) * 0xFF51AFD7ED558CCD & WORD
        number ^= number >> 33
    number = number * 0xC4CEB9FE1A85EC53 & WORD
    return number ^ number >> 33


class SeenSketch:
    """A set of recently added keys that forgets old keys. False positives: less than 1 in 1,000 other keys.

    Keys are added to the younger of two Bloom filters. Once it contains `num_keys` keys, it becomes the older
    filter, the previous older filter is deleted, and an empty filter becomes the younger filter. A key is
    forgotten after `num_keys` to 2 x `num_keys` later keys. Keys are hashed, so they may be any bytes.

    Parameters
    ----------
    num_keys
        Number of keys of one filter. A key takes 8 to 16 bytes in the two filters together.
    """

    def __init__(self, num_keys: int) -> None:
        self._num_keys = self._free = max(1, num_keys)
        num_bits = max(LEAST_BITS, 1 << (BITS_PER_KEY * self._num_keys - 1).bit_length())
        self._mask = num_bits - 1
        self._young, self._old = bytearray(num_bits // 8), bytearray(num_bits // 8)

    def add(self, key: bytes) -> None:
        """Add a key."""
        if self._free == 0:
            self._young, self._old = bytearray(len(self._young)), self._young
            self._free = self._num_keys
        self._free -= 1
        for bit in self._bits(key):
            self._young[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, key: bytes) -> bool:
        bits = self._bits(key)
        return any(
            all(filter_[bit >> 3] >> (bit & 7) & 1 for bit in bits) for filter_ in (self._young, self._old)
        )

    def _bits(self, key: bytes) -> list[int]:
        first, second = (mix(hash_key(key) + step * STEP & WORD) for step in (1, 2))
        return [number & self._mask for number in (first, first >> 32, second, second >> 32)]
