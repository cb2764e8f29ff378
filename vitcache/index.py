"""The index: from keys to entries, and in which order the entries of each tier go."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from vitcache.pages import PagePool
from vitcache.policy import make_policy
from vitcache.streams import Fence


class Entry:
    """One item's rows in the pages of one tier. Equal only to itself. Guarded by the cache's lock.

    `cost` is what a hit saves. `written` is the fence behind the copy into the pages, and `reads` has the
    last fence of every stream that read them. All but `leases` and `reads` never change.
    """

    __slots__ = ("cost", "key", "leases", "num_rows", "paged_rows", "pages", "pool", "reads", "written")

    def __init__(
        self, key: bytes, num_rows: int, cost: float, pool: PagePool, pages: tuple[int, ...], written: Fence
    ) -> None:
        self.key = key
        self.num_rows = num_rows
        self.cost = cost
        self.pool = pool
        self.pages = pages
        self.paged_rows = pool.describe(pages, num_rows)
        self.written = written
        self.reads: dict[Hashable, Fence] = {}
        self.leases = 0

    def fences(self) -> tuple[Fence, ...]:
        """Return what must have passed before the pages are written again."""
        return (self.written, *self.reads.values())


class Index:
    """The entries of one epoch by key, and one policy per tier. Guarded by the cache's lock."""

    def __init__(self, policy: str, pools: Iterable[PagePool]) -> None:
        self.entries: dict[bytes, Entry] = {}
        self._policies = {pool.tier: make_policy(policy, pool.num_pages) for pool in pools}

    def add(self, entry: Entry) -> None:
        """Add an entry under a key that is not there."""
        self.entries[entry.key] = entry
        self._policies[entry.pool.tier].insert(entry.key, len(entry.pages), entry.cost)

    def remove(self, entry: Entry) -> None:
        """Take out an entry that is there."""
        del self.entries[entry.key]
        self._policies[entry.pool.tier].remove(entry.key)

    def evict(self, entry: Entry) -> bool:
        """Take out an entry to make room; whether it is worth a place in the next tier."""
        del self.entries[entry.key]
        policy = self._policies[entry.pool.tier]
        is_kept = policy.is_kept(entry.key)
        policy.evict(entry.key)
        return is_kept

    def touch(self, entry: Entry) -> None:
        """Note a hit."""
        self._policies[entry.pool.tier].touch(entry.key)

    def pop(self) -> Entry:
        """Take out one of the entries, of which there must be one."""
        key, entry = self.entries.popitem()
        self._policies[entry.pool.tier].remove(key)
        return entry

    def order(self, tier: str) -> Iterator[bytes]:
        """Yield the keys of a tier, the first to go first."""
        return self._policies[tier].victims()

    def victims(self, tier: str) -> Iterator[Entry]:
        """Yield the entries of a tier, the first to go first."""
        return (self.entries[key] for key in self.order(tier))
