"""A cache's counts as Prometheus metrics, for processes that have `prometheus_client`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vitcache.cache.embedding_cache import EmbeddingCache

_COUNTERS = {
    "misses": "Look-ups that found nothing.",
    "insertions": "Entries that came in.",
    "evictions": "Entries that left.",
    "demotions": "Entries that moved from the device tier to the host tier.",
    "writebacks": "Copies of entries to the host tier, as they moved there or ahead of that.",
    "promotions": "Entries of the host tier that came to the device tier, too.",
    "rejections": "Rows that were not admitted.",
    "corruptions": "Look-ups that were misses because the checksum in the host tier was another one.",
}
_TIER_COUNTERS = {
    "hits": "Look-ups that found rows, by tier.",
    "hit_bytes": "Bytes of the rows that were found, by tier.",
    "saved_ms": "Milliseconds of encoding that hits saved, by tier.",
}
_GAUGES = {
    "bytes": "Bytes of the pages in use, by tier.",
    "capacity_bytes": "Bytes of all pages, by tier.",
}


class CacheCollector:
    """Reads `EmbeddingCache.stats` when Prometheus asks: ``REGISTRY.register(CacheCollector(cache))``.

    Parameters
    ----------
    cache
        Once it is closed, there are no samples.
    name
        Value of the label ``cache``, which tells the caches of one process apart.

    Raises
    ------
    ImportError
        If `prometheus_client` is not installed.
    """

    def __init__(self, cache: EmbeddingCache, name: str = "default") -> None:
        from prometheus_client import core

        self._core = core
        self._cache = cache
        self._name = name

    def describe(self) -> list[Any]:
        """Return nothing: what there is does not depend on the cache, and asking it early may be wrong."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield one family per count."""
        try:
            stats = self._cache.stats()
        except RuntimeError:  # it was closed
            return
        tiers = {"device": stats.device, "host": stats.host}
        for count, text in _COUNTERS.items():
            yield self._family("Counter", count, text, {(): getattr(stats, count)})
        for count, text in _TIER_COUNTERS.items():
            values = {(tier,): getattr(hits, count) for tier, hits in tiers.items()}
            yield self._family("Counter", count, text, values)
        for size, text in _GAUGES.items():
            values = {(tier,): getattr(stats, f"{tier}_{size}") for tier in tiers}
            yield self._family("Gauge", size, text, values)
        yield self._family("Gauge", "entries", "Entries that can be looked up.", {(): stats.entries})
        yield self._family("Gauge", "leased_pages", "Pages in use by readers.", {(): stats.leased_pages})

    def _family(self, kind: str, name: str, text: str, values: Mapping[Any, float]) -> Any:
        labels = ["cache", "tier"] if () not in values else ["cache"]
        family = getattr(self._core, f"{kind}MetricFamily")(f"vitcache_{name}", text, labels=labels)
        for tier, value in values.items():
            family.add_metric([self._name, *tier], value)
        return family
