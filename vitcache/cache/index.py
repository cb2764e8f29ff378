"""The index: the entries of both tiers by key, and their order of eviction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from vitcache.cache.policies import make_policy
from vitcache.pages.entry import Entry
from vitcache.pages.pool import PagePool


class Index:
    """The entries of one epoch by key, and one policy per tier. Guarded by the cache's lock.

    `device` and `host` map keys to the entries of each tier; no key is in both. `policies` contains each
    tier's policy. `host_copies` maps keys of device entries to their host copies, which are in no policy: the
    host tier evicts host copies before entries.
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
        """Whether an entry is stored under `key`."""
        return key in self.device or key in self.host

    def __iter__(self) -> Iterator[Entry]:
        """Yield every entry and every host copy."""
        return chain(self.device.values(), self.host.values(), self.host_copies.values())

    def add(self, entry: Entry) -> None:
        """Insert an entry. Its key must not be in its tier."""
        self._entries[entry.pool.tier][entry.key] = entry
        self.policies[entry.pool.tier].insert(entry.key, len(entry.pages), entry.cost)

    def promote(self, entry: Entry) -> None:
        """Insert a device entry whose key is in the host tier. The host entry becomes its host copy."""
        self.policies["host"].remove(entry.key)
        self.host_copies[entry.key] = self.host.pop(entry.key)
        self.add(entry)

    def remove(self, key: bytes) -> list[Entry]:
        """Remove a key, which must be in the index. Return its entry, and its host copy if it has one."""
        tier = "device" if key in self.device else "host"
        self.policies[tier].remove(key)
        host_copy = self.host_copies.pop(key, None)
        return [self._entries[tier].pop(key), *([] if host_copy is None else [host_copy])]

    def evict(self, entry: Entry) -> bool:
        """Evict an entry or a host copy. Return whether the entry is worth a copy to the next tier."""
        tier = entry.pool.tier
        if self.host_copies.get(entry.key) is entry:
            del self.host_copies[entry.key]
            return False
        is_worth_copy = self.is_worth_copy(entry)
        del self._entries[tier][entry.key]
        self.policies[tier].evict(entry.key)
        return is_worth_copy

    def is_worth_copy(self, entry: Entry) -> bool:
        """Whether an entry, when it is evicted, is worth a copy to the next tier."""
        return self.policies[entry.pool.tier].is_worth_copy(entry.key)

    def restore_host_copy(self, key: bytes) -> bool:
        """Insert the host copy of an evicted device entry as its host entry. Return whether it had one."""
        entry = self.host_copies.pop(key, None)
        if entry is None:
            return False
        entry.hits = 0
        self.add(entry)
        return True

    def pop(self) -> list[Entry]:
        """Remove an arbitrary key. Return as `remove` does. The index must not be empty."""
        return self.remove(next(iter(self.device or self.host)))

    def eviction_order(self, tier: str) -> Iterator[bytes]:
        """Yield the keys of a tier's policy, the next victim first."""
        return self.policies[tier].victims()

    def victims(self, tier: str) -> Iterator[Entry]:
        """Yield the entries of a tier, and its host copies, the next victim first."""
        entries = self._entries[tier]
        in_order = (entries[key] for key in self.eviction_order(tier))
        return chain(self.host_copies.values(), in_order) if tier == "host" else in_order
