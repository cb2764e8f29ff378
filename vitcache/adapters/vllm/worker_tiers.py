"""`WorkerTiers`: the lower tiers of the worker's store, as the scheduler in the same process uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vitcache.adapters.vllm.tier_fetches import Item
from vitcache.cache.fetch import Fetch
from vitcache.cache.stats import TierStats

# The counters of vLLM's metrics, and the counts of a tier that they sum. `{}` is the name of the tier.
_COUNTERS: dict[str, tuple[str, ...]] = {
    "tier_fetches_{}_hit": ("hits",),
    "tier_fetches_{}_miss": ("misses",),
    "tier_fetches_{}_damaged": ("damaged",),
    "tier_fetches_{}_late": ("late",),
    "tier_fetches_{}_refused": ("refused", "not_admitted"),
    "tier_fetches_{}_failed": ("failures",),
    "tier_fetched_bytes_{}": ("fetched_bytes",),
    "tier_stores_{}": ("stored",),
    "tier_stored_bytes_{}": ("stored_bytes",),
    "tier_store_failures_{}": ("store_failures",),
    "tier_skipped_stores_{}": ("skipped_stores",),
    "tier_not_worth_{}": ("not_worth",),
    "tier_fetch_seconds_{}": ("fetch_seconds",),
    "tier_openings_{}": ("openings",),
}


class TierStore(Protocol):
    """The worker's store: `vitcache.adapters.vllm.store.Store`."""

    def begin_fetch(self, item: Item) -> Fetch:
        """Begin to fetch an item to free host pages. Any thread may call it."""

    def tier_stats(self) -> tuple[TierStats, ...]:
        """Return the counts of each lower tier. Any thread may call it."""

    def forget_weights(self) -> None:
        """Drop all rows, and the name under which the lower tiers have them. Any thread may call it."""


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
        """Note that the rows are not needed, and that a tier is late if it is."""
        if self._fetch is not None:
            self._fetch.wait(0.0)
            self._fetch.cancel()


class WorkerTiers:
    """Fetches rows from the lower tiers of the worker, and reads their counts. Implements `Fetcher`.

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

    def __init__(self, find_store: Callable[[], TierStore | None], page_bytes: int) -> None:
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
        stats = () if store is None else store.tier_stats()
        return sum(-(-tier.quarantined_bytes // self._page_bytes) for tier in stats)

    def counts(self) -> dict[str, float]:
        """Return the counters of the tiers since the last call."""
        store = self._find_store()
        if store is None:
            return {}
        now = {
            name.format(tier.name): sum(getattr(tier, part) for part in parts)
            for tier in store.tier_stats()
            for name, parts in _COUNTERS.items()
        }
        known, self._known = self._known, now
        return {name: float(max(0, value - known.get(name, 0))) for name, value in now.items()}

    def reset(self) -> None:
        """Drop all rows, and the name under which the lower tiers have them."""
        store = self._find_store()
        if store is not None:
            store.forget_weights()
