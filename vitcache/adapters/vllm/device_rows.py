"""The rows in device pages that vLLM's encoder cache shows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vitcache._native import SourceTable
from vitcache.adapters.vllm.identifiers import source_key
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation

EncoderCache = dict[str, Tensor]  # vLLM's: identifier -> rows


class ShownRows(NamedTuple):
    """A lease on device pages, the view of them in vLLM's encoder cache, and their keys.

    `key` is that of the cache, `source_key` that of `DeviceRows.sources`.
    """

    lease: Lease
    view: Tensor
    key: bytes
    source_key: bytes


class DeviceRows:
    """The entries whose device pages vLLM's encoder cache shows, and pages for further ones.

    The pages of each entry are adjacent, so that one view shows them. As long as vLLM's encoder cache shows
    an entry, its pages are leased.

    Parameters
    ----------
    cache
        The cache.
    before_compaction
        Commits reservations that are not committed yet: no entry can be moved while there are any.

    Attributes
    ----------
    rows
        vLLM's encoder cache, the same dict in every step.
    shown
        The entries by identifier.
    sources
        The rows of these entries for placements, by the keys that `source_key` returns.
    zeros
        Identifiers of rows that were lost. vLLM's encoder cache contains zeros for them.
    num_compactions
        How often entries were moved to make free pages adjacent.

    Notes
    -----
    Only the worker's thread may call. Copies run on the current stream.
    """

    def __init__(self, cache: EmbeddingCache, before_compaction: Callable[[], None]) -> None:
        self._cache = cache
        self._before_compaction = before_compaction
        self.rows: EncoderCache = {}
        self.shown: dict[str, ShownRows] = {}
        self.sources = SourceTable()
        self.zeros: set[str] = set()
        self.num_compactions = 0
        self._size = 0  # bytes of vLLM's dict at the end of the last step

    def show(self, identifier: str, key: bytes, lease: Lease) -> None:
        """Put a view of leased device pages into vLLM's encoder cache. Call `use` before it is read."""
        self.release(identifier)
        segments, paged_rows = lease.segments(), lease.paged_rows
        if len(segments) != 1 or paged_rows is None:
            lease.release()
            raise ValueError(
                f"{lease.num_rows} rows lie in {len(segments)} runs of pages, they must lie in 1"
            )
        self.rows[identifier] = segments[0]
        shown = ShownRows(lease, segments[0], key, source_key(identifier))
        self.shown[identifier] = shown
        self.sources.set(shown.source_key, paged_rows)

    def source_key(self, identifier: str) -> bytes:
        """Return the key of an entry in `sources`, also of one that is not shown yet.

        The keys of shown entries are not hashed again: their items are most of those of a new request.
        """
        shown = self.shown.get(identifier)
        return source_key(identifier) if shown is None else shown.source_key

    def use(self, identifiers: Iterable[str]) -> None:
        """Allow the current stream to read entries: it waits for their copies."""
        for identifier in identifiers:
            self.shown[identifier].lease.use()

    def show_zeros(self, identifier: str, shape: tuple[int, int]) -> None:
        """Put zeros into vLLM's encoder cache, without which its engine would stop."""
        self.release(identifier)
        self.rows[identifier] = torch.zeros(shape, dtype=self._cache.dtype, device=self._cache.device)
        self.zeros.add(identifier)

    def release(self, identifier: str) -> None:
        """Release the pages of an entry that vLLM's encoder cache shows no more, if it did."""
        self.zeros.discard(identifier)
        shown = self.shown.pop(identifier, None)
        if shown is not None:
            self.sources.remove(shown.source_key)  # first: the table has addresses of the pages
            shown.lease.release()

    def release_all(self) -> None:
        """Remove all entries, and zeros, from vLLM's encoder cache."""
        for identifier in [*self.shown, *self.zeros]:
            self.rows.pop(identifier, None)
            self.release(identifier)

    def end_step(self) -> None:
        """Note the size of vLLM's encoder cache, for `was_cleared`."""
        self._size = sys.getsizeof(self.rows)

    def was_cleared(self) -> bool:
        """Whether vLLM has cleared its encoder cache since the last step.

        `dict.clear` frees the table of a dict. `dict.pop`, by which vLLM evicts, keeps it, also if all items
        are evicted.
        """
        return sys.getsizeof(self.rows) < self._size

    def reserve(self, key: bytes, num_rows: int, row_width: int, tenant: str) -> Reservation | None:
        """Reserve adjacent device pages for new rows. Returns None if too few pages are free."""
        return self._with_room(
            lambda: self._cache.reserve(key, num_rows, row_width=row_width, contiguous=True, tenant=tenant)
        )

    def promote(self, source: Lease) -> Reservation | None:
        """Reserve adjacent device pages for a host entry. Returns None if too few pages are free."""
        return self._with_room(lambda: self._cache.promote(source, contiguous=True))

    def _with_room(self, reserve: Callable[[], Found | None]) -> Found | None:
        found = reserve()
        if found is None:
            self._before_compaction()
            self._compact()
            found = reserve()
        return found

    def _compact(self) -> None:
        """Move entries so that all free device pages are adjacent, and replace the views of them."""
        shown = dict(self.shown)
        for identifier, entry in list(shown.items()):
            if entry.key not in self._cache:  # dropped, and still read until vLLM frees it
                self.rows[identifier] = entry.view.clone()
                del shown[identifier]
            self.release(identifier)
        self.num_compactions += self._cache.compact()
        for identifier, entry in shown.items():
            lease = self._cache.get(entry.key)
            if lease is None:
                raise RuntimeError(f"the rows of {identifier!r} have left the cache while they were moved")
            self.show(identifier, entry.key, lease)
        self.use(shown)


Found = TypeVar("Found")
