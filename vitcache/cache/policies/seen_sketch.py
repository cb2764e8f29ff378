"""A sketch of the keys that were seen lately, in a fixed number of bits."""

from __future__ import annotations

from hashlib import blake2b

PROBES = 4
BITS_PER_KEY = 32


class SeenSketch:
    """Tells keys that were added lately from others; less than one of 1,000 others passes for one.

    Two Bloom filters: one is filled with as many keys as it is made for, then it is the older one, and the
    one that was is dropped. So a key is forgotten after one to two fillings. Keys may be any bytes, also a
    caller's counters: they are hashed.

    Parameters
    ----------
    num_keys
        Keys of one filling. Takes 8 to 16 bytes for each.
    """

    def __init__(self, num_keys: int) -> None:
        self._num_keys = self._room = num_keys
        num_bits = 1 << (BITS_PER_KEY * num_keys - 1).bit_length()
        self._mask = num_bits - 1
        self._young, self._old = bytearray(num_bits // 8), bytearray(num_bits // 8)

    def add(self, key: bytes) -> None:
        """Remember a key."""
        if self._room == 0:
            self._young, self._old = bytearray(len(self._young)), self._young
            self._room = self._num_keys
        self._room -= 1
        for place in self._places(key):
            self._young[place >> 3] |= 1 << (place & 7)

    def __contains__(self, key: bytes) -> bool:
        places = self._places(key)
        return any(
            all(bits[place >> 3] >> (place & 7) & 1 for place in places) for bits in (self._young, self._old)
        )

    def _places(self, key: bytes) -> list[int]:
        number = int.from_bytes(blake2b(key, digest_size=4 * PROBES).digest())
        return [number >> 32 * probe & self._mask for probe in range(PROBES)]
