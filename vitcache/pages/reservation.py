"""A reservation: pages of a cache that wait for the rows of one key."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vitcache._native import PagedRows
from vitcache.device.streams import Fence, Timeline
from vitcache.pages.pending import PendingCopies, PendingWrite
from vitcache.pages.pool import PagePool
from vitcache.rows import check_rows

logger = logging.getLogger("vitcache.cache")


class Outcome(NamedTuple):
    """What became of a reservation: whether it was entered, and the cache's epoch and pages to be had."""

    admitted: bool
    epoch: int
    available: int


class Finish(Protocol):
    """Enters what was written before a fence, or frees its pages."""

    def __call__(self, pending: PendingWrite, fence: Fence | None, *, failed: bool) -> Outcome:
        """See `Ledger.finish`."""


class Abandoned(NamedTuple):
    """A reservation that was given up, and the streams that may still write its pages."""

    pending: PendingWrite
    timeline: Timeline
    finish: Finish
    streams: frozenset[Hashable] = frozenset()


class Reservation:
    """Room for the rows of one key, until they were written there and are entered, or given up.

    Made by `EmbeddingCache.reserve` and `EmbeddingCache.promote`. Write all rows by `write`, or by ``store=``
    of `scatter_embeddings` and `embed_tokens`, which place them in the same launch; then `commit`. A context
    manager: what was not committed when it ends is cancelled, and so is a reservation that is forgotten.

    Attributes
    ----------
    key
        Under which the rows will be entered.
    num_rows, row_width, dtype
        Shape of the rows, and the dtype that they are rounded to.
    device
        Device of the pages.

    Notes
    -----
    One thread at a time. The pages may be written on the streams that were current in a call of `use` (which
    `write` and the two operations call), until `commit` or `cancel`, which come behind all of that.
    """

    __slots__ = (
        "_finish",
        "_forgotten",
        "_paged_rows",
        "_pending",
        "_streams",
        "_timeline",
        "device",
        "dtype",
        "key",
        "num_rows",
        "row_width",
    )

    def __init__(
        self,
        pending: PendingWrite,
        device: torch.device,
        timeline: Timeline,
        finish: Finish,
        forgotten: deque[Abandoned],
    ) -> None:
        # Not yet `pending`: what is interrupted half-way is given up by its maker.
        self._pending: list[PendingWrite] = []
        self.key = pending.key
        self.num_rows = pending.num_rows
        self.row_width = pending.pool.row_width
        self.dtype = pending.pool.dtype
        self.device = device
        self._paged_rows: PagedRows | None = None
        self._timeline = timeline
        self._finish = finish
        self._forgotten = forgotten
        self._streams: set[Hashable] = set()
        self._pending = [pending]

    @property
    def paged_rows(self) -> PagedRows | None:
        """The native description of the pages, for placements; None once they are committed or cancelled."""
        if self._paged_rows is None and self._pending:
            [pending] = self._pending
            self._paged_rows = pending.pool.describe(pending.pages, pending.num_rows)
        return self._paged_rows

    def segments(self) -> list[Tensor]:
        """Return views of the pages that the rows go to, in order, adjacent pages joined."""
        pending = self._open()
        return pending.pool.segments(pending.pages, pending.num_rows)

    def to_tensor(self) -> Tensor:
        """Return a copy ``(num_rows, row_width)`` of what was written, made on the current stream.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled.
        """
        self.use()
        none = torch.empty((0, self.row_width), dtype=self.dtype, device=self.device)
        return torch.cat([none, *self.segments()])

    def use(self) -> None:
        """Let the current stream write the pages: order it behind what made room, and `commit` behind it.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled.
        """
        self._open()
        stream = self._timeline.current()
        if stream not in self._streams:
            earlier = [self._timeline.record(other) for other in self._streams]
            for fence in earlier or self._pending[0].copies.fences:
                if fence.stream != stream:
                    self._timeline.wait(fence)
            self._streams.add(stream)

    def write(self, rows: Tensor) -> None:
        """Copy `rows` into the pages on the current stream, rounded to the cache's dtype.

        Parameters
        ----------
        rows
            ``(num_rows, row_width)``; else as in `EmbeddingCache.put`.

        Raises
        ------
        ValueError, TypeError
            If `rows` is of another shape or dtype.
        RuntimeError
            If the reservation was committed or cancelled.
        """
        self._open()
        rows = check_rows(rows, self.row_width)
        if rows.shape[0] != self.num_rows:  # `len` of a tensor takes longer
            raise ValueError(f"there are {len(rows)} rows, room is reserved for {self.num_rows}")
        self.write_checked(rows)

    def write_checked(self, rows: Tensor) -> None:
        """`write` of rows that are known to be of the right shape and dtype, without a gradient."""
        self.use()
        pending = self._pending[0]
        pending.pool.write(pending.pages, rows)

    def commit(self) -> bool:
        """Enter the rows, in place of what is under the key.

        Returns
        -------
        bool
            False if the cache began another epoch, or was closed, since the rows were begun; a warning was
            logged. Of a promotion: also if what was promoted is no longer there, or is on the device already;
            no warning, as nothing is lost.

        Raises
        ------
        RuntimeError
            If the reservation was committed or cancelled.
        """
        pending = self._open()
        if not self._streams:
            self.use()  # nothing was written, but what made room may still be read
        try:
            outcome = self._finish(pending, join(self._timeline, self._streams), failed=False)
        except BaseException:
            self.cancel()
            raise
        self._close()
        if not outcome.admitted and pending.source is None:
            advice = outdated(pending.epoch, outcome.epoch)
            warn_refused(self.num_rows, pending.pool, outcome.available, advice)
        return outcome.admitted

    def cancel(self) -> None:
        """Give the pages back. After `commit` or a first call, does nothing."""
        if self._pending:
            [pending] = self._pending
            self._close()
            abandon(pending, self._timeline, self._finish, frozenset(self._streams))

    def __enter__(self) -> Reservation:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        # Without a lock: whoever is interrupted by the collector may hold the cache's.
        if self._pending:
            streams = frozenset(self._streams)
            self._forgotten.append(Abandoned(self._pending.pop(), self._timeline, self._finish, streams))

    def _open(self) -> PendingWrite:
        if not self._pending:
            raise RuntimeError(f"this reservation of {self.num_rows} rows was committed or cancelled")
        return self._pending[0]

    def _close(self) -> None:
        self._pending.clear()
        self._paged_rows = None


def abandon(
    pending: PendingWrite | PendingCopies,
    timeline: Timeline,
    give_up: Callable[..., object],
    streams: frozenset[Hashable] = frozenset(),
) -> None:
    """Free the pages of what is not entered, whatever else fails.

    Parameters
    ----------
    give_up
        `Ledger.finish` of a pending write, `Ledger.finish_early_copies` of copies; called with `failed`.
    """
    fence: Fence | None = None
    try:
        fence = join(timeline, streams)
    except BaseException:
        timeline.synchronize()  # with no fence behind the copies, they must be done
        raise
    finally:
        give_up(pending, fence, failed=True)


def join(timeline: Timeline, streams: set[Hashable] | frozenset[Hashable]) -> Fence:
    """Return a fence behind all work of `streams` so far, on the current stream."""
    current = timeline.current()
    for stream in streams:
        if stream != current:
            timeline.wait(timeline.record(stream))
    return timeline.record(current)


def outdated(begun: int, now: int) -> str:
    """Why rows of an earlier epoch are refused."""
    return f"they are of epoch {begun}, the cache is in epoch {now}"


def warn_refused(num_rows: int, pool: PagePool, available: int, advice: str) -> None:
    """Log that rows were not admitted, with both sizes."""
    logger.warning(
        "put of %d rows refused: they take %d bytes, the device tier has %d, %d of them to be had; %s",
        num_rows,
        pool.pages_for(num_rows) * pool.page_bytes,
        pool.num_pages * pool.page_bytes,
        available * pool.page_bytes,
        advice,
    )
