"""Which entry goes first when a tier needs room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from vitcache.cache.policies.cost_aware import CostAware
from vitcache.cache.policies.lru import Lru
from vitcache.cache.policies.s3fifo import S3Fifo


class Policy(Protocol):
    """Order of eviction over the keys of one tier. Not thread-safe: the cache calls it under its lock."""

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key that is not there.

        Parameters
        ----------
        pages
            What it takes.
        cost
            What a hit on it saves, in the caller's unit: milliseconds of encoding, say.
        """

    def touch(self, key: bytes) -> None:
        """Note a hit on a key that is there."""

    def remove(self, key: bytes) -> None:
        """Take out a key that is there, for another reason than room: it was replaced, or is wrong."""

    def evict(self, key: bytes) -> None:
        """Take out a victim, and learn from it."""

    def is_kept(self, key: bytes) -> bool:
        """Whether a key that is to be evicted is worth a place in the next tier."""

    def victims(self) -> Iterator[bytes]:
        """Yield every key once, the first to go first. Nothing may be changed meanwhile."""


# Each makes an empty policy for a tier of so many pages.
POLICIES: dict[str, Callable[[int], Policy]] = {"lru": Lru, "s3fifo": S3Fifo, "cost": CostAware}


def make_policy(name: str, capacity_pages: int) -> Policy:
    """Return a new, empty policy for a tier of so many pages.

    Raises
    ------
    ValueError
        If no policy has this name; the message lists those there are.
    """
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"policy is {name!r}, it must be one of {', '.join(map(repr, POLICIES))}")
    return POLICIES[name](capacity_pages)
