"""A lease: the right to read an entry's rows where they lie."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from vitcache._native import PagedRows
from vitcache.device.streams import Timeline
from vitcache.pages.entry import Entry

# What a released lease leaves behind: the entry to unpin, and the streams that read its pages. A plain tuple,
# as every look-up makes one.
Release = tuple[Entry, frozenset[Hashable]]

_NO_STREAMS: frozenset[Hashable] = frozenset()
_NOTHING: list[Entry] = []


class ReleaseQueue:
    """Where released leases wait for the cache. Any thread may `add`, at any time: it takes no lock."""

    def __init__(self) -> None:
        self.queue: deque[Release] = deque()
        self.add = self.queue.append  # every release calls it

    def take(self) -> list[Release]:
        """Take out all there are. One thread at a time."""
        queue = self.queue
        return [queue.popleft() for _ in range(len(queue))]

    def close(self) -> None:
        """Keep nothing from now on, so that the pages are freed with the last lease."""
        self.queue = deque(maxlen=0)
        self.add = self.queue.append


class CacheHandle(NamedTuple):
    """What a lease has of its cache, whose memory it does not keep."""

    device: torch.device
    timeline: Timeline
    releases: ReleaseQueue


class Lease:
    """A pin on the pages of one entry: until it is released they are neither evicted nor written.

    Made by `EmbeddingCache.get`. A context manager; a lease that is forgotten releases itself when collected.

    Attributes
    ----------
    num_rows
        Rows, each of `row_width` elements.
    hits
        Look-ups that found the entry in this tier since it came there, this one included.
    pin
        The one attribute that native code reads (csrc/python/item_reader.h), as the properties below would
        take longer than a row: a list with the entry, whose `paged_rows` are placed; empty once it is
        released. Not to be changed.

    Notes
    -----
    Any thread may use it and release it, from a finalizer too: `release` takes no lock and never waits. To
    read while another thread releases is the callers' mistake.

    Work that reads `pool` goes to a stream that was current in a call of `use`, after that call and before
    `release`. On a GPU the host itself may read pinned pages only once such work is done.
    """

    # As every look-up makes one, what all of a tier have in common is looked up when it is asked for.
    __slots__ = ("_handle", "_layout", "_streams", "hits", "num_rows", "pin")

    def __init__(self, pin: list[Entry], handle: CacheHandle) -> None:
        # Not yet `pin`: what is interrupted half-way must release nothing when it is collected.
        self.pin = _NOTHING
        [entry] = pin
        self.num_rows = entry.num_rows
        self.hits = entry.hits
        self._layout = entry.pool.layout
        self._handle = handle
        self._streams = _NO_STREAMS
        # Popping it releases the lease: of two threads only one can, and of a lease and who made it, too.
        self.pin = pin

    @property
    def row_width(self) -> int:
        """Elements of a row."""
        return self._layout.row_width

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows."""
        return self._layout.dtype

    @property
    def page_rows(self) -> int:
        """Rows of a page."""
        return self._layout.page_rows

    @property
    def tier(self) -> str:
        """Where the rows are: ``"device"`` or ``"host"``."""
        return self._layout.tier

    @property
    def device(self) -> torch.device:
        """Device of the cache, where the rows may be placed."""
        return self._handle.device

    @property
    def released(self) -> bool:
        """Whether the lease was released."""
        return not self.pin

    @property
    def pool(self) -> Tensor:
        """The pages of the entry's tier as rows ``(pool_rows, row_width)``; a GPU's host tier is pinned."""
        return self._entry().pool.rows

    @property
    def pages(self) -> tuple[int, ...]:
        """Page numbers in row order: row r is ``pool[pages[r // page_rows] * page_rows + r % page_rows]``."""
        return self._entry().pages

    @property
    def paged_rows(self) -> PagedRows | None:
        """The native description of the rows, for placements; None once it is released."""
        # The entry's, whose memory a look-up need not touch.
        return None if self.released else self._entry().paged_rows

    def segments(self) -> list[Tensor]:
        """Return views of `pool` with the rows in order, adjacent pages joined. Valid until `release`."""
        entry = self._entry()
        return entry.pool.segments(entry.pages, entry.num_rows)

    def check_unreleased(self) -> None:
        """Raise RuntimeError if the lease was released."""
        self._entry()

    def use(self) -> None:
        """Let the current stream read the pages: order it behind their writing, and their reuse behind it.

        Raises
        ------
        RuntimeError
            If the lease was released.
        """
        use_all((self,))

    def to_tensor(self) -> Tensor:
        """Return a copy ``(num_rows, row_width)`` on the cache's device, made on the current stream."""
        self.use()
        rows = torch.empty((self.num_rows, self.row_width), dtype=self.dtype, device=self.device)
        first = 0
        for segment in self.segments():
            rows[first : first + len(segment)].copy_(segment, non_blocking=True)
            first += len(segment)
        return rows

    def release(self) -> None:
        """Give up the pages. A second call does nothing."""
        try:
            entry = self.pin.pop()
        except IndexError:
            return
        self._handle.releases.add((entry, self._streams))

    def __enter__(self) -> Lease:
        self._entry()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if self.pin:
            self.release()

    def _entry(self) -> Entry:
        try:
            return self.pin[0]
        except IndexError:
            raise RuntimeError(f"this lease of {self.num_rows} rows was released") from None


def use_all(leases: Iterable[Lease]) -> None:
    """`Lease.use` of many, with one look at the current stream for those of one cache.

    Raises
    ------
    RuntimeError
        If one of them was released.
    """
    timeline: Timeline | None = None
    stream: Hashable = None
    for lease in leases:
        if lease._handle.timeline is not timeline:
            timeline = lease._handle.timeline
            stream = timeline.current()
        if not lease.pin or stream not in lease._streams:
            entry = lease._entry()
            if entry.written.stream != stream:
                timeline.wait(entry.written)
            lease._streams |= {stream}


def release_all(leases: list[Lease]) -> None:
    """`Lease.release` of many, without a call for each; they are taken out of the list."""
    for lease in leases:
        with suppress(IndexError):  # it was released before
            lease._handle.releases.add((lease.pin.pop(), lease._streams))
    leases.clear()
