"""`CacheCollector`: a cache's counts as Prometheus metrics. Needs the package `prometheus_client`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vitcache.cache.embedding_cache import EmbeddingCache

_COUNTERS = {
    "misses": "Look-ups of keys that were not in the cache.",
    "insertions": "Entries that were inserted.",
    "evictions": "Entries that were removed from the cache.",
    "demotions": "Entries that were demoted from the device tier to the host tier.",
    "writebacks": "Copies of entries to the host tier, on demotion or early.",
    "promotions": "Entries of the host tier that were copied to the device tier.",
    "rejections": "Calls of put that were not admitted.",
    "corruptions": "Look-ups that missed because the rows in the host tier did not match their checksum.",
}
_TIER_COUNTERS = {
    "hits": "Look-ups that hit, by tier.",
    "hit_bytes": "Bytes of the rows of hits, by tier.",
    "saved_ms": "Milliseconds of encoding that hits saved, by tier.",
}
_GAUGES = {
    "bytes": "Bytes of the pages in use, by tier.",
    "capacity_bytes": "Bytes of all pages, by tier.",
}


class CacheCollector:
    """Exports the counts of a cache: each scrape reads `EmbeddingCache.stats`.

    Parameters
    ----------
    cache
        The cache. After it is closed, `collect` yields no samples.
    name
        Value of the label ``cache``. Caches of one process need different names.

    Raises
    ------
    ImportError
        If `prometheus_client` is not installed.

    Notes
    -----
    Any thread may scrape. Names of the metrics begin with ``vitcache_``.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> from vitcache import EmbeddingCache
    >>> from vitcache.metrics import CacheCollector
    >>> cache = EmbeddingCache(4, device="cpu", device_bytes=1 << 20)
    >>> registry = CollectorRegistry()  # or prometheus_client.REGISTRY
    >>> registry.register(CacheCollector(cache, "images"))
    >>> cache.get(bytes(32))  # a miss
    >>> registry.get_sample_value("vitcache_misses_total", {"cache": "images"})
    1
    """

    def __init__(self, cache: EmbeddingCache, name: str = "default") -> None:
        from prometheus_client import core

        self._core = core
        self._cache = cache
        self._name = name

    def describe(self) -> list[Any]:
        """Return an empty list, so that `register` does not call `collect`: the cache may be closed."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield one metric family per count; none if the cache is closed."""
        try:
            stats = self._cache.stats()
        except RuntimeError:  # the cache is closed
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
        yield self._family(
            "Gauge", "leased_pages", "Pages, of both tiers, that are leased.", {(): stats.leased_pages}
        )

    def _family(self, kind: str, name: str, text: str, values: Mapping[Any, float]) -> Any:
        labels = ["cache", "tier"] if () not in values else ["cache"]
        family = getattr(self._core, f"{kind}MetricFamily")(f"vitcache_{name}", text, labels=labels)
        for tier, value in values.items():
            family.add_metric([self._name, *tier], value)
        return family
