"""An entry: one item's rows in the pages of one tier."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future

from vitcache._native import PagedRows
from vitcache.device.streams import Fence
from vitcache.pages.pool import PagePool


class Entry:
    """One item's rows in the pages of one tier. Equal only to itself. Guarded by the cache's lock.

    `cost` is what a hit saves, `hits` how many there were since the entry came to its tier. `written` is the
    fence behind the copy into the pages, and `reads` has the last fence of every stream that read them. A
    `checksum` is of the rows in host memory. All but `hits`, `leases` and `reads` never change.
    """

    __slots__ = (
        "_paged_rows",
        "checksum",
        "cost",
        "hits",
        "key",
        "leases",
        "num_pages",
        "num_rows",
        "pages",
        "pool",
        "reads",
        "written",
    )

    def __init__(
        self,
        key: bytes,
        num_rows: int,
        cost: float,
        pool: PagePool,
        pages: tuple[int, ...],
        written: Fence,
        checksum: Future[int] | None = None,
    ) -> None:
        self.key = key
        self.num_rows = num_rows
        self.cost = cost
        self.pool = pool
        self.pages = pages
        self.num_pages = len(pages)  # a look-up has one thing less to fetch from memory
        self._paged_rows: PagedRows | None = None
        self.written = written
        self.checksum = checksum
        self.reads: dict[Hashable, Fence] = {}
        self.leases = 0
        self.hits = 0

    @property
    def paged_rows(self) -> PagedRows:
        """What a placement reads. Made when the first one asks: many entries are never hit."""
        if self._paged_rows is None:
            self._paged_rows = self.pool.describe(self.pages, self.num_rows)
        return self._paged_rows

    def fences(self) -> tuple[Fence, ...]:
        """Return what must have passed before the pages are written again."""
        return (self.written, *self.reads.values())
