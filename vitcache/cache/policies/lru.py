"""The least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class Lru:
    """The least recently inserted or hit key goes first."""

    def __init__(self, capacity_pages: int) -> None:
        self._keys: OrderedDict[bytes, None] = OrderedDict()
        # Make a key the last to go. With no function of ours around it, as every look-up calls it.
        self.touch = self._keys.move_to_end

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key as the last to go."""
        self._keys[key] = None

    def remove(self, key: bytes) -> None:
        """Take out a key."""
        del self._keys[key]

    evict = remove

    def is_kept(self, key: bytes) -> bool:
        """Say yes: nothing is known of a key but its order."""
        return True

    def victims(self) -> Iterator[bytes]:
        """Yield the keys in the order of their last insertion or hit."""
        return iter(self._keys)
