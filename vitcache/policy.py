"""Which entry goes first when a tier needs room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol


class Policy(Protocol):
    """Order of eviction over the keys of one tier. Not thread-safe: the cache calls it under its lock."""

    def insert(self, key: bytes) -> None:
        """Add a key that is not there."""

    def touch(self, key: bytes) -> None:
        """Note a hit on a key that is there."""

    def remove(self, key: bytes) -> None:
        """Take out a key that is there."""

    def victims(self) -> Iterator[bytes]:
        """Yield every key once, the first to go first. Nothing may be changed meanwhile."""


class Lru:
    """The least recently inserted or hit key goes first."""

    def __init__(self) -> None:
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def insert(self, key: bytes) -> None:
        """Add a key as the last to go."""
        self._keys[key] = None

    def touch(self, key: bytes) -> None:
        """Make a key the last to go."""
        self._keys.move_to_end(key)

    def remove(self, key: bytes) -> None:
        """Take out a key."""
        del self._keys[key]

    def victims(self) -> Iterator[bytes]:
        """Yield the keys in the order of their last insertion or hit."""
        return iter(self._keys)


POLICIES: dict[str, type[Policy]] = {"lru": Lru}


def make_policy(name: str) -> Policy:
    """Return a new, empty policy.

    Raises
    ------
    ValueError
        If no policy has this name; the message lists those there are.
    """
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"policy is {name!r}, it must be one of {', '.join(map(repr, POLICIES))}")
    return POLICIES[name]()
