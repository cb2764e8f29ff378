"""Pending writes and copies, and the pages that they own until they are inserted or cancelled."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from vitcache.device.streams import Fence
from vitcache.pages.entry import Entry
from vitcache.pages.pool import PagePool


@dataclass(eq=False)
class Demotion:
    """A pending copy of a device entry to `pages` of `pool`, the pool of the host tier."""

    entry: Entry
    pool: PagePool
    pages: tuple[int, ...]
    checksum: Future[int] | None = None

    def host_entry(self, copied: Fence) -> Entry:
        """Return the entry of the host tier. `copied` is the fence behind the copy."""
        entry = self.entry
        return Entry(entry.key, entry.num_rows, entry.cost, self.pool, self.pages, copied, self.checksum)


@dataclass(eq=False)
class PendingCopies:
    """Pending copies of device entries to the host tier. They own the host pages that they write.

    `fences`: wait for them before you write the host pages or the victims' device pages. Once the copies are
    queued, `fences` contains only `copied`, the fence behind the copies. `replaced`: fences that were
    replaced in `Entry.reads`. They stay alive here, because a CUDA event must not be destroyed under the
    cache's lock.
    """

    demotions: list[Demotion]
    fences: set[Fence]
    copied: Fence | None = None
    replaced: list[Fence | None] = field(default_factory=list)

    def pages_of(self, pool: PagePool) -> list[int]:
        """Return the pages of `pool` that the copies write."""
        return [page for demotion in self.demotions if demotion.pool is pool for page in demotion.pages]


@dataclass(eq=False)
class PendingWrite:
    """A pending `put`, reservation or promotion. Until it is committed or cancelled, it owns its pages.

    `pages`: the pages of the new entry. `leftover_pages`: pages of victims that the new entry does not need.
    `copies`: the demotions of victims, and the fences to wait for before `pages` are written. `source`: the
    host entry that is promoted; None for a `put`.
    """

    epoch: int
    key: bytes
    num_rows: int
    cost: float
    pool: PagePool
    pages: tuple[int, ...]
    leftover_pages: tuple[int, ...]
    copies: PendingCopies
    source: Entry | None = None

    def pages_of(self, pool: PagePool) -> list[int]:
        """Return the pages of `pool` that the write and its copies own."""
        own = [*self.pages, *self.leftover_pages] if pool is self.pool else []
        return own + self.copies.pages_of(pool)
