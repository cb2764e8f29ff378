"""An entry: one item's rows in the pages of one tier."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future

from vitcache._native import PagedRows
from vitcache.device.streams import Fence
from vitcache.pages.pool import PagePool


class Entry:
    """One item's rows in the pages of one tier. Compared by identity. Guarded by the cache's lock.

    `cost` is the encode time in milliseconds that a hit saves. `hits` counts the hits since the entry was
    inserted into its tier. `written` is the fence behind the copy into the pages. `reads` maps each stream
    that read the pages to the fence behind its last read. `checksum` is the future of the CRC-32 of rows in
    host memory. Only `hits`, `leases` and `reads` change.
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
        self.num_pages = len(pages)  # stored, so that a look-up need not read the tuple
        self._paged_rows: PagedRows | None = None
        self.written = written
        self.checksum = checksum
        self.reads: dict[Hashable, Fence] = {}
        self.leases = 0
        self.hits = 0

    @property
    def paged_rows(self) -> PagedRows:
        """The native description of the rows, for placements. Made when it is first read."""
        if self._paged_rows is None:
            self._paged_rows = self.pool.describe(self.pages, self.num_rows)
        return self._paged_rows

    def fences(self) -> tuple[Fence, ...]:
        """Return the fences that must be complete before the pages are written again."""
        return (self.written, *self.reads.values())
