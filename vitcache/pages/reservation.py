"""A reservation: pages of a cache for the rows of one key, which are not written yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vitcache._native import PagedRows, Pending
from vitcache.device.streams import Fence, Timeline, check_current_stream
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.pages.lease import Lease
from vitcache.pages.pool import PagePool
from vitcache.rows import check_rows

logger = logging.getLogger("vitcache.cache")


class WriteResult(NamedTuple):
    """The result of a write: whether it was inserted, and a lease on the rows if one was asked for."""

    inserted: bool
    lease: Lease | None = None


class FinishWrite(Protocol):
    """Inserts the rows that were written before a fence, or frees their pages."""

    def __call__(
        self, pending: Pending, fence: Fence | None, *, failed: bool, leased: bool = False
    ) -> WriteResult:
        """See `Ledger::finish` in csrc/cache/ledger.h."""


class Reservation:
    """Pages for the rows of one key: `commit` inserts them under the key, `cancel` frees them.

    `EmbeddingCache.reserve` and `EmbeddingCache.promote` return it. Write all rows with `write`, or pass the
    reservation in ``store=`` of `scatter_embeddings` or `embed_tokens`, which write the rows in the launch
    that places them. Then call `commit`. A reservation is a context manager: on exit, it is cancelled
    unless it was committed. A reservation that is garbage-collected is cancelled, too.

    Attributes
    ----------
    key
        The key that `commit` inserts the rows under.
    num_rows, row_width, dtype
        Shape of the rows, and the dtype that they are rounded to.
    device
        Device of the pages.

    Notes
    -----
    Only one thread at a time may use a reservation. `write`, `scatter_embeddings` and `embed_tokens` call
    `use` themselves. For any other work that writes the pages: make its stream current, call `use`, and queue
    the work on that stream before `commit` or `cancel`. Readers of the entry, and later writers of the pages,
    wait for that work.

    Examples
    --------
    >>> import torch
    >>> from vitcache import EmbeddingCache
    >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=2)
    >>> with cache.reserve(bytes(32), 1) as reservation:  # before the encode
    ...     reservation.write(torch.ones(1, 2))
    ...     print(bytes(32) in cache, reservation.commit(), bytes(32) in cache)
    False True True
    """

    __slots__ = (
        "_finish",
        "_paged_rows",
        "_pending",
        "_timeline",
        "device",
        "dtype",
        "key",
        "num_rows",
        "row_width",
    )

    def __init__(
        self,
        pending: Pending,
        device: torch.device,
        timeline: Timeline,
        finish: FinishWrite,
    ) -> None:
        # If no other object refers to `pending`, the ledger takes it back (csrc/python/ledger_handle.h):
        # after an interrupt, and when this reservation is garbage-collected.
        self._pending = [pending]
        pool: PagePool = pending.memory
        self.row_width = pending.row_width
        self.key = pending.key
        self.num_rows = pending.num_rows
        self.dtype = pool.dtype
        self.device = device
        self._paged_rows: PagedRows | None = None
        self._timeline = timeline
        self._finish = finish

    @property
    def paged_rows(self) -> PagedRows | None:
        """The native description of the pages, for placements; None after `commit` or `cancel`."""
        if self._paged_rows is None and self._pending:
            self._paged_rows = self._pending[0].paged_rows
        return self._paged_rows

    def segments(self) -> list[Tensor]:
        """Return writable views of the pages in row order, one view per run of adjacent pages.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled.
        """
        pending = self._check_pending()
        pool: PagePool = pending.memory.at(self.row_width)
        return pool.segments(pending.pages, self.num_rows)

    def to_tensor(self) -> Tensor:
        """Return a copy ``(num_rows, row_width)`` of the rows that were written, made on the current stream.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled.
        """
        self.use()
        no_rows = torch.empty((0, self.row_width), dtype=self.dtype, device=self.device)
        return torch.cat([no_rows, *self.segments()])

    def use(self) -> None:
        """Allow work on the current stream to write the pages.

        The current stream waits until the pages can be overwritten: for earlier readers, for the copies of
        evicted entries to the host tier, and for other streams that called `use`. The host does not wait.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled.
        """
        pending = self._check_pending()
        stream, streams = self._timeline.current(), pending.streams
        if stream in streams or (pending.is_used and not streams):  # the CPU's stream is not recorded
            return
        fences = [self._timeline.record(other) for other in streams]
        for fence in fences or map(Fence._make, pending.fences):
            if fence.stream != stream:
                self._timeline.wait(fence)
        pending.use(stream)

    def write(self, rows: Tensor | Lease) -> None:
        """Copy `rows` into the pages on the current stream, rounded to the cache's dtype.

        Parameters
        ----------
        rows
            Shape ``(num_rows, row_width)``. Dtype, device and stream as in `EmbeddingCache.put`. Or a lease
            of the same cache on as many rows of the same width, in either tier: its pages are copied, and the
            host does not wait. The lease may be released after the call, because later writers of its pages
            wait for the copy.

        Raises
        ------
        ValueError
            If the shape of `rows` is not ``(num_rows, row_width)``, or the lease is of another cache.
        TypeError
            If `rows` is neither a lease nor a dense tensor of float32, float16 or bfloat16 on the CPU or
            CUDA.
        RuntimeError
            If the reservation was committed or cancelled, or the lease was released.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(
        ...     2, dtype=torch.float32, device="cpu", device_bytes=64, host_bytes=64, page_rows=2
        ... )
        >>> cache.put(bytes(32), torch.ones(1, 2), tier="host")
        True
        >>> with cache.get(bytes(32)) as lease, cache.promote(lease) as reservation:
        ...     reservation.write(lease)
        ...     reservation.commit()
        True
        """
        self._check_pending()
        if isinstance(rows, Lease):
            self._write_lease(rows)
            return
        rows = check_rows(rows, self.row_width)
        if rows.shape[0] != self.num_rows:  # `len` of a tensor takes longer
            raise ValueError(f"rows has {len(rows)} rows, it must have {self.num_rows}, as reserved")
        self.write_checked(rows)

    def _write_lease(self, lease: Lease) -> None:
        """Write the rows of a lease: copy its pages, whole."""
        lease.check_unreleased()
        if lease._tier.timeline is not self._timeline:
            raise ValueError(
                f"rows is a lease of {lease.num_rows} rows of another cache than the reservation"
            )
        shape, reserved = (lease.num_rows, lease.row_width), (self.num_rows, self.row_width)
        if shape != reserved:
            raise ValueError(f"rows is a lease of shape {shape}, it must have the reserved shape {reserved}")
        self.use()
        lease.use()
        pending = self._pending[0]
        pool: PagePool = pending.memory
        pool.copy_pages(pending.pages, lease._memory, lease.pages)

    def write_checked(self, rows: Tensor) -> None:
        """Write rows whose shape and dtype were checked and that need no gradient."""
        self.use()
        pending = self._pending[0]
        pool: PagePool = pending.memory
        if pool.row_width != self.row_width:
            pool = pool.at(self.row_width)
        pool.write(pending.pages, rows)

    def commit(self) -> bool:
        """Insert the rows. An entry under the same key is replaced.

        Returns
        -------
        bool
            False if the cache changed its epoch, or was closed, after the reservation was made; then a
            warning is logged, once per cache. A promotion also returns False if its entry has left the host
            tier, or was promoted already. A promotion logs no warning.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled. If the current stream is cudaStreamPerThread; the
            reservation is kept.
        """
        pending = self._check_pending()
        check_current_stream(self.device)  # before the rows are lost
        try:
            result = self._finish(pending, self._fence(pending), failed=False)
        except BaseException:
            self.cancel()
            raise
        self._clear_pending()
        return result.inserted

    def commit_lease(self) -> Lease | None:
        """Insert the rows, and return a lease on them. It counts neither as a hit nor as a miss.

        No other caller can evict, replace or drop the entry between the two: the lease is always on the rows
        of this reservation. So a caller needs no `EmbeddingCache.get` after the commit, which could miss.

        Returns
        -------
        Lease or None
            None where `commit` returns False.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled. If the current stream is cudaStreamPerThread; the
            reservation is kept.

        Examples
        --------
        >>> import torch
        >>> from vitcache import EmbeddingCache
        >>> cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=64, page_rows=2)
        >>> reservation = cache.reserve(bytes(32), 1)
        >>> reservation.write(torch.ones(1, 2))
        >>> with reservation.commit_lease() as lease:
        ...     lease.to_tensor()
        tensor([[1., 1.]])
        >>> cache.stats().hits
        0
        """
        pending = self._check_pending()
        check_current_stream(self.device)
        try:
            result = self._finish(pending, self._fence(pending), failed=False, leased=True)
        except BaseException:
            self.cancel()
            raise
        self._clear_pending()
        return result.lease

    def _fence(self, pending: Pending) -> Fence:
        """Return a fence behind all writes, also behind those that were queued on other streams."""
        if not pending.is_used:
            self.use()  # no rows were written, but the copies that read the pages may be in flight
        return join(self._timeline, pending.streams)

    def cancel(self) -> None:
        """Free the pages, and insert nothing. After `commit` or `cancel`, does nothing."""
        if self._pending:
            pending = self._pending[0]
            abort(pending, self._timeline, self._finish, pending.streams)
            self._clear_pending()  # last: after an interrupt, `cancel` aborts again

    def __enter__(self) -> Reservation:
        self._check_pending()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    __reduce_ex__ = refuse_copies("reserve again, or copy the rows with `to_tensor`")

    @described
    def __repr__(self) -> str:
        if not self._pending:
            return "committed or cancelled"
        return f"{describe_count(self.num_rows, 'row')} of {self.row_width}, {self.dtype}, not committed"

    def _check_pending(self) -> Pending:
        if not self._pending:
            raise RuntimeError(f"this reservation of {self.num_rows} rows was committed or cancelled")
        return self._pending[0]

    def _clear_pending(self) -> None:
        self._pending.clear()
        self._paged_rows = None


def abort(
    pending: Pending,
    timeline: Timeline,
    finish: Callable[..., object],
    streams: Sequence[int] = (),
) -> None:
    """Free the pages of a pending write or pending copies, even if no fence can be recorded.

    Parameters
    ----------
    finish
        Frees the pages: called with the pending write, a fence or None, and ``failed=True``.
    streams
        Streams that may still write the pages.
    """
    fence: Fence | None = None
    try:
        fence = join(timeline, streams)
    except BaseException:
        timeline.synchronize()  # without a fence to wait for later, all work must be complete now
        raise
    finally:
        finish(pending, fence, failed=True)


def join(timeline: Timeline, streams: Sequence[int]) -> Fence:
    """Let the current stream wait for `streams`, and return a fence behind their queued work."""
    current = timeline.current()
    for stream in streams:
        if stream != current:
            timeline.wait(timeline.record(stream))
    return timeline.record(current)
