"""Pages on their way: set aside for rows, and for what makes room for them, until they are entered."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from vitcache.device.streams import Fence
from vitcache.pages.entry import Entry
from vitcache.pages.pool import PagePool


@dataclass(eq=False)
class Demotion:
    """An entry on its way from its own pages to `pages` of the host tier."""

    entry: Entry
    pool: PagePool
    pages: tuple[int, ...]
    checksum: Future[int] | None = None

    def host_entry(self, copied: Fence) -> Entry:
        """Return the entry of the host tier, whose rows are there behind `copied`."""
        entry = self.entry
        return Entry(entry.key, entry.num_rows, entry.cost, self.pool, self.pages, copied, self.checksum)


@dataclass(eq=False)
class PendingCopies:
    """Entries while they are copied to the host tier: it alone writes the pages that they go to.

    `fences` come before any write to these pages, and to those that the entries make room in; once the copies
    are queued, it is `copied` alone, which comes behind all others. `replaced` keeps fences that were taken
    out of the books, as an event is not to be destroyed under a lock.
    """

    demotions: list[Demotion]
    fences: set[Fence]
    copied: Fence | None = None
    replaced: list[Fence | None] = field(default_factory=list)

    def pages_of(self, pool: PagePool) -> list[int]:
        """Return the pages of one pool that are written."""
        return [page for demotion in self.demotions if demotion.pool is pool for page in demotion.pages]


@dataclass(eq=False)
class PendingWrite:
    """A `put` or a promotion while its rows are copied: it alone reads and writes the pages named here.

    `pages` become the new entry's, `leftover_pages` are what its victims leave over. `copies` has what of the
    victims goes to the host tier, and what comes before a write to the pages. A promotion has the host entry
    `source` that the rows come from.
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
        """Return the pages of one pool."""
        own = [*self.pages, *self.leftover_pages] if pool is self.pool else []
        return own + self.copies.pages_of(pool)
