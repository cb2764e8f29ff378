"""A lease: a reader's pin on the pages of one entry."""

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

# A released lease: the entry to unpin, and the streams that read its pages. A plain tuple, because every
# release of a lease makes one.
Release = tuple[Entry, frozenset[Hashable]]

_NO_STREAMS: frozenset[Hashable] = frozenset()
_EMPTY_PIN: list[Entry] = []


class ReleaseQueue:
    """Released leases that the cache has not processed yet. `add` takes no lock: any thread may call it."""

    def __init__(self) -> None:
        self.queue: deque[Release] = deque()
        self.add = self.queue.append  # bound once, because every release calls it

    def take(self) -> list[Release]:
        """Remove and return all queued releases. Only one thread at a time may call it."""
        queue = self.queue
        return [queue.popleft() for _ in range(len(queue))]

    def close(self) -> None:
        """Discard all releases from now on: a queued release would keep the memory of its pool alive."""
        self.queue = deque(maxlen=0)
        self.add = self.queue.append


class CacheHandle(NamedTuple):
    """The parts of a cache that its leases use. A handle does not keep the cache's memory alive."""

    device: torch.device
    timeline: Timeline
    releases: ReleaseQueue


class Lease:
    """A reader's pin on an entry: until its release, the entry is not evicted and its pages are not written.

    `EmbeddingCache.get` returns a lease. A lease is a context manager, and is released on exit. A lease that
    is garbage-collected is released, too. Until the release, the rows are readable even if the entry is
    replaced or dropped, or the cache is closed.

    Attributes
    ----------
    num_rows
        Number of rows, of `row_width` elements each.
    hits
        Number of hits of the entry since it was inserted into its tier, including the hit that made this
        lease.
    pin
        A list that contains the entry, and is empty after the release. Do not change it. Native code
        (csrc/python/item_reader.h) reads only this attribute, because calling a property takes longer than
        copying a row.

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

    # Every look-up makes a lease, so a lease has few fields: `_layout` contains all that are equal in a tier.
    __slots__ = ("_handle", "_layout", "_streams", "hits", "num_rows", "pin")

    def __init__(self, pin: list[Entry], handle: CacheHandle) -> None:
        # If `__init__` is interrupted, `__del__` finds an empty pin and releases nothing.
        self.pin = _EMPTY_PIN
        [entry] = pin
        self.num_rows = entry.num_rows
        self.hits = entry.hits
        self._layout = entry.pool.layout
        self._handle = handle
        self._streams = _NO_STREAMS
        # `list.pop` is atomic: exactly one of several threads, or of this lease and an interrupted `get`,
        # releases the entry.
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
        """The tier of the rows: ``"device"`` or ``"host"``."""
        return self._layout.tier

    @property
    def device(self) -> torch.device:
        """Device of the cache, on which the rows may be placed."""
        return self._handle.device

    @property
    def released(self) -> bool:
        """Whether the lease was released."""
        return not self.pin

    @property
    def pool(self) -> Tensor:
        """All pages of the entry's tier, as rows ``(pool_rows, row_width)``. A GPU's host tier is pinned.

        Raises RuntimeError if the lease was released.
        """
        return self._entry().pool.rows

    @property
    def pages(self) -> tuple[int, ...]:
        """Page numbers in row order: row r is ``pool[pages[r // page_rows] * page_rows + r % page_rows]``.

        Raises RuntimeError if the lease was released.
        """
        return self._entry().pages

    @property
    def paged_rows(self) -> PagedRows | None:
        """The native description of the rows, for placements; None if the lease was released."""
        # Read from the entry on demand, so that a look-up need not read it.
        return None if self.released else self._entry().paged_rows

    def segments(self) -> list[Tensor]:
        """Return views of `pool` with the rows in order, one view per run of pages. Valid until `release`.

        Raises
        ------
        RuntimeError
            If the lease was released.
        """
        entry = self._entry()
        return entry.pool.segments(entry.pages, entry.num_rows)

    def check_unreleased(self) -> None:
        """Raise RuntimeError if the lease was released."""
        self._entry()

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

    def release(self) -> None:
        """Unpin the pages. A second call does nothing."""
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
    """Call `Lease.use` of several leases. Adjacent leases of one cache share one query of the current stream.

    Raises
    ------
    RuntimeError
        If one of the leases was released.
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
    """Release several leases, and empty the list. Faster than one call of `Lease.release` for each."""
    for lease in leases:
        with suppress(IndexError):  # the lease was released before
            lease._handle.releases.add((lease.pin.pop(), lease._streams))
    leases.clear()
