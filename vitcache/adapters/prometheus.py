"""`CacheCollector`: the counts of caches as Prometheus metrics. Needs the package `prometheus-client`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from vitcache.adapters.tier_metrics import tier_families
from vitcache.arguments import shown
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.stats import CacheStats
from vitcache.extras import need_of
from vitcache.handles import described, refuse_copies

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
}
_SAVED = "Seconds of encoding that hits saved, by tier."  # Prometheus counts time in seconds
_TIER_GAUGES = {
    "bytes": "Bytes of the pages in use, by tier.",
    "capacity_bytes": "Bytes of all pages, by tier.",
}
_GAUGES = {
    "entries": "Entries that can be looked up.",
    "leased_pages": "Pages, of both tiers, that are leased.",
}
_TIERS = ("device", "host")


class CacheCollector:
    """Exports the counts of one or more caches: each scrape reads `EmbeddingCache.stats`.

    A registry accepts one `CacheCollector`, because each metric may have only one description in the
    exported text. To export several caches of one process, pass them to one collector as a dict.

    Parameters
    ----------
    cache
        The cache, or a dict of the caches by name. After a cache is closed, `collect` yields no samples of
        it.
    name
        Value of the label ``cache`` of a single cache. None: ``"default"``. Not with a dict.

    Raises
    ------
    TypeError
        If `cache` is not an `EmbeddingCache` or a dict, a value of the dict is not an `EmbeddingCache`, or a
        name is not a str.
    ValueError
        If the dict is empty, a name is empty or cannot be encoded in UTF-8, or both a dict and `name` are
        given. `prometheus_client` raises it when a second collector is registered in a registry.
    RuntimeError
        If a cache is closed.
    ImportError
        If the package `prometheus-client` is not installed. The message has the command that installs it.

    Notes
    -----
    Any thread may scrape. Names of the metrics begin with ``vitcache_``.

    Examples
    --------
    >>> from prometheus_client import CollectorRegistry
    >>> from vitcache import EmbeddingCache
    >>> from vitcache.metrics import CacheCollector
    >>> images, audio = (EmbeddingCache(4, device="cpu", device_bytes="1MiB") for _ in range(2))
    >>> registry = CollectorRegistry()  # or prometheus_client.REGISTRY
    >>> registry.register(CacheCollector({"images": images, "audio": audio}))
    >>> images.get(bytes(32))  # a miss
    >>> registry.get_sample_value("vitcache_misses_total", {"cache": "images"})
    1
    """

    def __init__(self, cache: EmbeddingCache | Mapping[str, EmbeddingCache], name: str | None = None) -> None:
        self._core = _import_core()
        self._caches = _by_name(cache, name)

    def describe(self) -> list[Any]:
        """Return all metric families without samples.

        `register` compares their names with the names of the registered collectors, so that it refuses a
        second collector. It needs no cache: a cache may be closed already.
        """
        return list(self._families({}))

    def collect(self) -> Iterator[Any]:
        """Yield one metric family per count, with the samples of all caches that are not closed."""
        stats = {}
        for name, cache in self._caches.items():
            with suppress(RuntimeError):  # the cache is closed
                stats[name] = cache.stats()
        if stats:
            yield from self._families(stats)

    __reduce_ex__ = refuse_copies("make another collector of the same caches, for another registry")

    @described
    def __repr__(self) -> str:
        return ", ".join(map(repr, self._caches))

    def _families(self, stats: Mapping[str, CacheStats]) -> Iterator[Any]:
        for count, text in _COUNTERS.items():
            yield self._family(
                "Counter", count, text, {(name,): getattr(s, count) for name, s in stats.items()}
            )
        for count, text in _TIER_COUNTERS.items():
            values = {
                (name, tier): getattr(getattr(s, tier), count) for name, s in stats.items() for tier in _TIERS
            }
            yield self._family("Counter", count, text, values, "tier")
        saved = {
            (name, tier): getattr(s, tier).saved_ms / 1e3 for name, s in stats.items() for tier in _TIERS
        }
        yield self._family("Counter", "saved_seconds", _SAVED, saved, "tier")
        for size, text in _TIER_GAUGES.items():
            values = {
                (name, tier): getattr(s, f"{tier}_{size}") for name, s in stats.items() for tier in _TIERS
            }
            yield self._family("Gauge", size, text, values, "tier")
        for count, text in _GAUGES.items():
            yield self._family(
                "Gauge", count, text, {(name,): getattr(s, count) for name, s in stats.items()}
            )
        for family in tier_families(stats):
            yield self._family(family.kind, family.name, family.text, family.values, *family.labels)

    def _family(self, kind: str, name: str, text: str, values: Mapping[Any, float], *labels: str) -> Any:
        make_family = getattr(self._core, f"{kind}MetricFamily")
        family = make_family(f"vitcache_{name}", text, labels=["cache", *labels])
        for label_values, value in values.items():
            family.add_metric(label_values, value)
        return family


def _by_name(cache: Any, name: Any) -> dict[str, EmbeddingCache]:
    """Return the caches by name, checked. Raises as `CacheCollector`."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"the name of a cache must be str, got {shown(name)} of type {type(name).__name__}")
    if isinstance(cache, EmbeddingCache):
        caches: dict[Any, Any] = {"default" if name is None else name: cache}
    elif not isinstance(cache, Mapping):
        raise TypeError(f"cache must be an EmbeddingCache or a dict of them, got {type(cache).__name__}")
    elif name is not None:
        raise ValueError(f"name is {name!r}, but the dict names its {len(cache)} caches: give only the dict")
    elif not cache:
        raise ValueError("cache is an empty dict, it must contain at least 1 cache")
    else:
        caches = dict(cache)
    for label, value in caches.items():
        if not isinstance(label, str):
            raise TypeError(
                f"the name of a cache must be str, got {shown(label)} of type {type(label).__name__}"
            )
        if not label:
            raise ValueError("the name of a cache is '', it must have at least 1 character")
        try:
            label.encode()
        except UnicodeEncodeError:
            raise ValueError(f"the name of a cache is {label!r}, which UTF-8 cannot encode") from None
        if not isinstance(value, EmbeddingCache):
            raise TypeError(f"cache {label!r} must be an EmbeddingCache, got {type(value).__name__}")
        value.stats()  # raises if the cache is closed
    return caches


def _import_core() -> Any:
    try:
        from prometheus_client import core
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"CacheCollector {need_of('prometheus_client')}", name=error.name
        ) from error
    return core
