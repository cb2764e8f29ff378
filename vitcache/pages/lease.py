"""A lease: a reader's pin on the pages of one entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitcache._native import LeaseBase, PagedRows, find_lease, forget_fences, use_leases
from vitcache.device.streams import Fence, Timeline
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.pages.pool import PagePool


class LeaseTier(NamedTuple):
    """The properties that the leases of one tier share. A lease can read them after its release, too.

    `page_rows` and `row_width` are those of full rows.
    """

    timeline: Timeline  # the first field: native code compares it (csrc/python/lease.cpp)
    name: str
    page_rows: int
    row_width: int
    dtype: torch.dtype
    device: torch.device


class Lease(LeaseBase):
    """A reader's pin on an entry: until its release, the entry is not evicted and its pages are not written.

    `EmbeddingCache.get` returns a lease. A lease is a context manager, and is released on exit. A lease that
    is garbage-collected is released, too. Until the release, the rows are readable even if the entry is
    replaced or dropped, or the cache is closed. A lease cannot be copied or pickled; its rows can.

    Attributes
    ----------
    num_rows, row_width
        Number of rows, and elements of each row.
    hits
        Number of hits of the entry since it was inserted into its tier, including the hit that made this
        lease. `Reservation.commit_lease` counts no hit.
    released
        Whether the lease was released.
    pages
        Page numbers in row order: row r is ``pool[pages[r // page_rows] * page_rows + r % page_rows]``.
        Raises RuntimeError if the lease was released.

    Notes
    -----
    Any thread may use and release a lease. `release` may be called in a finalizer: it takes no lock and never
    waits. A thread must not release a lease that another thread is reading.

    `scatter_embeddings`, `embed_tokens` and `to_tensor` call `use` themselves. For any other work that reads
    `pool`: make the stream of the work current, call `use`, queue the work on that stream, and then call
    `release`. Host code that reads pinned pages of a GPU's host tier must call `use`, synchronize the current
    stream, read the pages, and then call `release`.

    Examples
    --------
    >>> import torch
    >>> from vitcache import EmbeddingCache
    >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=2)
    >>> cache.put(bytes(32), torch.tensor([[1.0, 2.0]]))
    True
    >>> with cache.get(bytes(32)) as lease:
    ...     print(lease.num_rows, lease.tier, lease.to_tensor())
    1 device tensor([[1., 2.]])
    >>> lease.released
    True
    """

    # The entry, its pin and the methods that a hit calls are native (csrc/python/lease.h).
    __slots__ = ()

    num_rows: int
    row_width: int
    hits: int
    released: bool
    pages: tuple[int, ...]
    paged_rows: PagedRows | None  # the native description of the rows, for placements
    _tier: LeaseTier
    _memory: PagePool

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows."""
        return self._tier.dtype

    @property
    def page_rows(self) -> int:
        """Rows of a page: of narrow rows, ``cache.row_width // row_width`` times as many as of full rows."""
        return self._tier.page_rows * (self._tier.row_width // self.row_width)

    @property
    def tier(self) -> str:
        """The tier of the rows: ``"device"`` or ``"host"``."""
        return self._tier.name

    @property
    def device(self) -> torch.device:
        """Device of the cache, on which the rows may be placed."""
        return self._tier.device

    @property
    def pool(self) -> Tensor:
        """All pages of the entry's tier, as rows ``(pool_rows, row_width)``. A GPU's host tier is pinned.

        Raises RuntimeError if the lease was released.
        """
        return self._memory.at(self.row_width).rows

    def segments(self) -> list[Tensor]:
        """Return views of `pool` with the rows in order, one view per run of pages. Valid until `release`.

        Raises
        ------
        RuntimeError
            If the lease was released.
        """
        return self._memory.at(self.row_width).segments(self.pages, self.num_rows)

    def use(self) -> None:
        """Allow work on the current stream to read the pages.

        The current stream waits until the pages are written. Writes to the pages after the release wait for
        the work that was queued on this stream before the release. The host does not wait.

        Raises
        ------
        RuntimeError
            If the lease was released.
        """
        use_all((self,))

    def to_tensor(self) -> Tensor:
        """Return a copy ``(num_rows, row_width)`` on the cache's device, made on the current stream.

        Raises
        ------
        RuntimeError
            If the lease was released.
        """
        self.use()
        rows = torch.empty((self.num_rows, self.row_width), dtype=self.dtype, device=self.device)
        first = 0
        for segment in self.segments():
            rows[first : first + len(segment)].copy_(segment, non_blocking=True)
            first += len(segment)
        return rows

    __reduce_ex__ = refuse_copies(
        "a lease pins pages; copy its rows with `to_tensor`, or look the key up again"
    )

    @described
    def __repr__(self) -> str:
        if self.released:
            return "released"
        return f"{describe_count(self.num_rows, 'row')} of {self.row_width}, {self.dtype}, {self.tier} tier"


def use_all(items: Sequence[Any]) -> None:
    """Call `Lease.use` of the leases in a list. Adjacent leases of one cache share one query of the stream.

    The stream waits once for each fence, and not for a fence whose work is complete. Later reads of such an
    entry do not ask again.

    Raises
    ------
    RuntimeError
        If one of the leases was released.
    """
    items = items if isinstance(items, list) else list(items)
    first = find_lease(items)
    while first < len(items):
        timeline = items[first]._tier.timeline
        stream = timeline.current()
        end, fences = use_leases(items, first, stream, False)
        if fences:
            passed = {fence[1] for fence in fences if timeline.wait(Fence(*fence))}
            if passed:
                forget_fences(items, passed)
            end, _ = use_leases(items, first, stream, True)
        first = end


def release_all(leases: list[Lease]) -> None:
    """Release several leases, and empty the list."""
    for lease in leases:
        lease.release()
    leases.clear()
