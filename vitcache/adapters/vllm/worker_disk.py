"""`WorkerDisk`: the disk of the worker's store, as the scheduler in the same process uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vitcache.adapters.vllm.disk_fetches import Item
from vitcache.cache.fetch import Fetch
from vitcache.cache.stats import TierStats

# The counters of vLLM's metrics, by the counts of a tier that they sum.
_COUNTERS: dict[str, tuple[str, ...]] = {
    "disk_fetches_hit": ("hits",),
    "disk_fetches_miss": ("misses",),
    "disk_fetches_damaged": ("damaged",),
    "disk_fetches_late": ("late",),
    "disk_fetches_refused": ("refused", "not_admitted"),
    "disk_fetches_failed": ("failures",),
    "disk_fetched_bytes": ("fetched_bytes",),
    "disk_stores": ("stored",),
    "disk_stored_bytes": ("stored_bytes",),
    "disk_store_failures": ("store_failures",),
    "disk_skipped_stores": ("skipped_stores",),
    "disk_not_worth": ("not_worth",),
    "disk_fetch_seconds": ("fetch_seconds",),
    "disk_openings": ("openings",),
}


class DiskStore(Protocol):
    """The worker's store: `vitcache.adapters.vllm.store.Store`."""

    def begin_fetch(self, item: Item) -> Fetch:
        """Begin to fetch an item to free host pages. Any thread may call it."""

    def disk_stats(self) -> TierStats:
        """Return the counts of the disk. Any thread may call it."""

    def forget_weights(self) -> None:
        """Drop all rows, and the name under which the disk has them. Any thread may call it."""


class ItemFetch:
    """One fetch of one item. None: the worker has no store, so the fetch has ended without rows."""

    __slots__ = ("_fetch",)

    def __init__(self, fetch: Fetch | None) -> None:
        self._fetch = fetch

    @property
    def done(self) -> bool:
        """Whether the fetch has ended, and uses no memory beside the pages of rows that it found."""
        return self._fetch is None or self._fetch.done

    def found(self) -> bool:
        """Whether the cache has the rows. Only after `done`."""
        return self._fetch is not None and self._fetch.wait(0.0)[0]

    def cancel(self) -> None:
        """Note that the rows are not needed, and that the disk is late if it is."""
        if self._fetch is not None:
            self._fetch.wait(0.0)
            self._fetch.cancel()


class WorkerDisk:
    """Fetches rows from the disk of the worker, and reads its counts. Implements `Fetcher`.

    Parameters
    ----------
    find_store
        Returns the worker's store; None before the worker has one.
    page_bytes
        Bytes of a page.

    Notes
    -----
    Only the scheduler's thread may call. No call but `reset` waits; that waits for at most 1 s.
    """

    def __init__(self, find_store: Callable[[], DiskStore | None], page_bytes: int) -> None:
        self._find_store = find_store
        self._page_bytes = page_bytes
        self._known: dict[str, float] = {}

    def begin(self, item: Item) -> ItemFetch:
        """Begin to fetch an item."""
        store = self._find_store()
        return ItemFetch(None if store is None else store.begin_fetch(item))

    def num_lost_pages(self) -> int:
        """Host pages that a fetch may still write, although it has ended."""
        store = self._find_store()
        return 0 if store is None else -(-store.disk_stats().quarantined_bytes // self._page_bytes)

    def counts(self) -> dict[str, float]:
        """Return the counters of the disk since the last call."""
        store = self._find_store()
        if store is None:
            return {}
        stats = store.disk_stats()
        now = {name: sum(getattr(stats, part) for part in parts) for name, parts in _COUNTERS.items()}
        known, self._known = self._known, now
        return {name: float(max(0, value - known.get(name, 0))) for name, value in now.items()}

    def reset(self) -> None:
        """Drop all rows, and the name under which the disk has them."""
        store = self._find_store()
        if store is not None:
            store.forget_weights()
