"""The index: from keys to entries of both tiers, and in which order the entries of each go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from vitcache.cache.policies import make_policy
from vitcache.pages.entry import Entry
from vitcache.pages.pool import PagePool


class Index:
    """The entries of one epoch by key, and one policy per tier. Guarded by the cache's lock.

    `device` and `host` have the entries of each tier, `policies` their order; no key is in both.
    `host_copies` has the host tier's copies of entries that are in the device tier, too: in no policy, as
    they are the first to give room.
    """

    def __init__(self, policy: str, pools: Iterable[PagePool]) -> None:
        self.device: dict[bytes, Entry] = {}
        self.host: dict[bytes, Entry] = {}
        self.host_copies: dict[bytes, Entry] = {}
        self._entries = {"device": self.device, "host": self.host}
        self.policies = {pool.tier: make_policy(policy, pool.num_pages) for pool in pools}

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self.device) + len(self.host)

    def __contains__(self, key: bytes) -> bool:
        """Whether there is an entry under a key."""
        return key in self.device or key in self.host

    def __iter__(self) -> Iterator[Entry]:
        """Yield every entry and every host copy."""
        return chain(self.device.values(), self.host.values(), self.host_copies.values())

    def add(self, entry: Entry) -> None:
        """Add an entry under a key that is not there."""
        self._entries[entry.pool.tier][entry.key] = entry
        self.policies[entry.pool.tier].insert(entry.key, len(entry.pages), entry.cost)

    def promote(self, entry: Entry) -> None:
        """Add a device entry whose key is in the host tier: what is there becomes its host copy."""
        self.policies["host"].remove(entry.key)
        self.host_copies[entry.key] = self.host.pop(entry.key)
        self.add(entry)

    def remove(self, key: bytes) -> list[Entry]:
        """Take out a key that is there; return its entry and its host copy, if it has one."""
        tier = "device" if key in self.device else "host"
        self.policies[tier].remove(key)
        host_copy = self.host_copies.pop(key, None)
        return [self._entries[tier].pop(key), *([] if host_copy is None else [host_copy])]

    def evict(self, entry: Entry) -> bool:
        """Take out an entry to make room; whether it is worth a place in the next tier."""
        tier = entry.pool.tier
        if self.host_copies.get(entry.key) is entry:
            del self.host_copies[entry.key]
            return False
        is_kept = self.is_kept(entry)
        del self._entries[tier][entry.key]
        self.policies[tier].evict(entry.key)
        return is_kept

    def is_kept(self, entry: Entry) -> bool:
        """Whether an entry, if it is evicted, is worth a place in the next tier."""
        return self.policies[entry.pool.tier].is_kept(entry.key)

    def restore_host_copy(self, key: bytes) -> bool:
        """Let the host copy of an entry that was evicted take its place; whether there is one."""
        entry = self.host_copies.pop(key, None)
        if entry is None:
            return False
        entry.hits = 0
        self.add(entry)
        return True

    def pop(self) -> list[Entry]:
        """Take out one of the keys, of which there must be one."""
        return self.remove(next(iter(self.device or self.host)))

    def order(self, tier: str) -> Iterator[bytes]:
        """Yield the keys of a tier's policy, the first to go first."""
        return self.policies[tier].victims()

    def victims(self, tier: str) -> Iterator[Entry]:
        """Yield the entries of a tier, the first to go first."""
        entries = self._entries[tier]
        in_order = (entries[key] for key in self.order(tier))
        return chain(self.host_copies.values(), in_order) if tier == "host" else in_order
