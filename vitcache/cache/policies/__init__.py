"""Policies: the order in which a tier evicts its entries.

The three policies of vitcache are native (csrc/cache/). A caller may add a policy of its own to `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from vitcache._native import CostAwarePolicy, LruPolicy, S3FifoPolicy


class Policy(Protocol):
    """The order of eviction of one tier's keys. Not thread-safe: the cache calls it under its lock."""

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key, which must not be in the policy.

        Parameters
        ----------
        pages
            Number of pages of the entry.
        cost
            Cost that a hit saves, in any unit that all keys share; the cache passes milliseconds.
        """

    def touch(self, key: bytes) -> None:
        """Record a hit on a key, which must be in the policy."""

    def remove(self, key: bytes) -> None:
        """Remove a key whose entry was dropped or replaced. The key must be in the policy."""

    def evict(self, key: bytes) -> None:
        """Remove a key whose entry is evicted. The policy may learn from the eviction."""

    def is_worth_copy(self, key: bytes) -> bool:
        """Whether the entry of `key`, when it is evicted, is worth a copy to the next tier."""

    def victims(self) -> Iterator[bytes]:
        """Yield every key once, the next victim first. Do not change the policy during the iteration."""


# Maps a name to a class. The argument of a class is the number of pages of its tier. csrc/cache/ describes
# the methods: lru.h, s3fifo.h, cost_aware.h. The native classes raise KeyError for a key that is not in the
# policy, and ValueError for a key that is already in it or does not have 32 bytes.
POLICIES: dict[str, Callable[[int], Policy]] = {
    "lru": LruPolicy,
    "s3fifo": S3FifoPolicy,
    "cost": CostAwarePolicy,
}


def make_policy(name: str, capacity_pages: int) -> Policy:
    """Return a new, empty policy for a tier of `capacity_pages` pages.

    Raises
    ------
    ValueError
        If no policy is called `name`. The message lists all names.
    """
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"policy is {name!r}, it must be one of {', '.join(map(repr, POLICIES))}")
    return POLICIES[name](capacity_pages)
