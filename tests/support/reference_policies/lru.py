"""The policy "lru": least recently used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class Lru:
    """Evicts the key whose insertion or last hit is the longest ago."""

    def __init__(self, capacity_pages: int) -> None:
        self._keys: OrderedDict[bytes, None] = OrderedDict()
        # `touch` makes a key the last victim. It is bound once, because every look-up calls it.
        self.touch = self._keys.move_to_end

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key as the last victim."""
        self._keys[key] = None

    def remove(self, key: bytes) -> None:
        """Remove a key."""
        del self._keys[key]

    evict = remove

    def is_worth_copy(self, key: bytes) -> bool:
        """Return True: the policy knows only the order of the keys."""
        return True

    def victims(self) -> Iterator[bytes]:
        """Yield the keys in the order of their insertion or last hit, the oldest first."""
        return iter(self._keys)
