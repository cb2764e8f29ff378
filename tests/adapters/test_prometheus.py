"""`CacheCollector`: the counts of a cache as Prometheus reads them."""

from __future__ import annotations

import prometheus_client
from cache_cases import KEYS, PAGE_BYTES, make_rows
from caches import make_cache

from vitcache.cache.stats import CacheStats, TierHits
from vitcache.metrics import CacheCollector


def test_stats_count_hits_bytes_and_saved_ms_by_tier() -> None:
    cache = make_cache(1, 2)
    cache.put(KEYS[0], make_rows(1), encode_ms=5.0)
    cache.put(KEYS[1], make_rows(1), encode_ms=3.0)  # demotes the first entry
    for number in (0, 1, 1):
        cache.get(KEYS[number]).release()
    stats = cache.stats()
    assert stats.device == TierHits(2, 2 * PAGE_BYTES, 6.0)
    assert stats.host == TierHits(1, PAGE_BYTES, 5.0)
    assert stats.hits == 3
    assert make_cache(1).stats().host == TierHits(0, 0, 0.0)


def test_collector_exports_every_count_with_cache_and_tier_labels() -> None:
    registry = prometheus_client.CollectorRegistry()
    first, second = make_cache(1, 2), make_cache(3)
    registry.register(CacheCollector(first, "first"))
    registry.register(CacheCollector(second, "second"))
    first.put(KEYS[0], make_rows(1), encode_ms=5.0)
    first.put(KEYS[1], make_rows(1))
    first.get(KEYS[0]).release()
    second.get(KEYS[0])

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"vitcache_{name}", labels)

    assert sample("hits_total", cache="first", tier="host") == 1
    assert sample("hits_total", cache="first", tier="device") == 0
    assert sample("saved_ms_total", cache="first", tier="host") == 5
    assert sample("misses_total", cache="second") == 1
    assert sample("demotions_total", cache="first") == 1
    assert sample("bytes", cache="first", tier="host") == PAGE_BYTES
    assert sample("capacity_bytes", cache="second", tier="device") == 3 * PAGE_BYTES
    assert sample("entries", cache="first") == 2
    exported = {family.name for family in registry.collect()}
    counts = {name for name in CacheStats.__dataclass_fields__ if not name.startswith(("device", "host"))}
    assert exported == {
        f"vitcache_{name}" for name in (*counts, *TierHits._fields, "bytes", "capacity_bytes")
    }
    assert b"# HELP vitcache_hits_total" in prometheus_client.generate_latest(registry)


def test_collector_of_a_closed_cache_yields_no_samples() -> None:
    registry = prometheus_client.CollectorRegistry()
    cache = make_cache(1)
    registry.register(CacheCollector(cache))
    cache.close()
    assert list(registry.collect()) == []
