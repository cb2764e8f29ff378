"""`CacheCollector`: the counts of a cache as Prometheus reads them."""

from __future__ import annotations

import sys
from typing import Any

import prometheus_client
import pytest
from cache_cases import KEYS, PAGE_BYTES, make_rows
from caches import make_cache
from prometheus_client import CollectorRegistry, parser
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import LONG, key_of, put, tier_cache

from vitcache.cache.stats import CacheStats, TierHits, TierStats
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


HITS = "hits", "hit_bytes", "saved_seconds"


def test_collector_exports_every_count_with_cache_and_tier_labels() -> None:
    registry = prometheus_client.CollectorRegistry()
    first, second = make_cache(1, 2), make_cache(3)
    registry.register(CacheCollector({"first": first, "second": second}))
    first.put(KEYS[0], make_rows(1), encode_ms=5.0)
    first.put(KEYS[1], make_rows(1))
    first.get(KEYS[0]).release()
    second.get(KEYS[0])

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"vitcache_{name}", labels)

    assert sample("hits_total", cache="first", tier="host") == 1
    assert sample("hits_total", cache="first", tier="device") == 0
    assert sample("saved_seconds_total", cache="first", tier="host") == 0.005
    assert sample("misses_total", cache="second") == 1
    assert sample("demotions_total", cache="first") == 1
    assert sample("bytes", cache="first", tier="host") == PAGE_BYTES
    assert sample("capacity_bytes", cache="second", tier="device") == 3 * PAGE_BYTES
    assert sample("entries", cache="first") == 2
    exported = {family.name for family in registry.collect() if not family.name.startswith("vitcache_tier_")}
    nested = ("device", "host", "tiers", "encode_ms_per_row")
    counts = {name for name in CacheStats.__dataclass_fields__ if not name.startswith(nested)}
    assert exported == {
        f"vitcache_{name}" for name in (*counts, *HITS, "bytes", "capacity_bytes", "row_encode_seconds")
    }
    assert TierHits._fields == ("hits", "hit_bytes", "saved_ms")  # exported in seconds
    assert b"# HELP vitcache_hits_total" in prometheus_client.generate_latest(registry)


def test_collector_exports_every_count_of_tiers_below() -> None:
    registry = prometheus_client.CollectorRegistry()
    with tier_cache(PlantedTier()) as cache:
        put(cache, 1)
        cache.fetch([key_of(2)], 2)
        assert cache.flush(LONG)
        registry.register(CacheCollector(cache, "images"))

        def sample(name: str, **labels: str) -> float | None:
            labels |= {"cache": "images", "tier": "planted"}
            return registry.get_sample_value(f"vitcache_tier_{name}", labels)

        assert sample("fetches_total", outcome="miss") == 1
        assert sample("stores_total", outcome="stored") == 1
        assert sample("stored_bytes_total") == 32
        assert sample("is_open") == 0
        assert sample("own", count="entries") == 1
        families = {family.name for family in registry.collect()}
        exported = {f"vitcache_tier_{name}" for name in TierStats.__dataclass_fields__}
        by_outcome = {"hits", "misses", "damaged", "refused", "not_admitted"}
        by_outcome |= {"stored", "store_failures", "skipped_stores"}
        missing = {name.removeprefix("vitcache_tier_") for name in exported - families}
        assert missing == by_outcome | {"name"}


def test_collector_of_a_closed_cache_yields_no_samples() -> None:
    registry = prometheus_client.CollectorRegistry()
    cache = make_cache(1)
    registry.register(CacheCollector(cache))
    cache.close()
    assert list(registry.collect()) == []


def parse(registry: CollectorRegistry) -> dict[str, Any]:
    """The families of the exported text by name, after checks that both formats are valid."""
    text = prometheus_client.generate_latest(registry).decode()
    families = list(parser.text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    headers = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(headers) == len(set(headers)) == len(names)
    strict = openmetrics.generate_latest(registry).decode()
    assert {family.name for family in openmetrics_parser.text_string_to_metric_families(strict)} == set(names)
    return {family.name: family for family in families}


def test_collector_of_several_caches_exports_one_family_per_count() -> None:
    registry = CollectorRegistry()
    caches = {"first": make_cache(1, 2), 'a "quoted"\\ name\n': make_cache(3), "größe": make_cache(1)}
    registry.register(CacheCollector(caches))
    caches["first"].get(KEYS[0])
    families = parse(registry)
    misses = {sample.labels["cache"]: sample.value for sample in families["vitcache_misses"].samples}
    assert misses == dict.fromkeys(caches, 0) | {"first": 1}
    tiers = {tuple(sample.labels.values()) for sample in families["vitcache_bytes"].samples}
    assert tiers == {(name, tier) for name in caches for tier in ("device", "host")}


def test_second_collector_in_a_registry_is_refused_and_the_text_stays_valid() -> None:
    registry = CollectorRegistry()
    first, second = make_cache(1), make_cache(1)
    collector = CacheCollector(first, "first")
    registry.register(collector)
    before = parse(registry).keys()
    for other in (
        CacheCollector(second, "second"),
        CacheCollector(first, "first"),
        CacheCollector({"third": second}),
        collector,
    ):
        with pytest.raises(ValueError, match="vitcache_misses"):
            registry.register(other)
    first.close()
    with pytest.raises(ValueError, match="vitcache_misses"):
        registry.register(CacheCollector(second, "second"))
    registry.unregister(collector)
    registry.register(CacheCollector(second, "second"))
    assert parse(registry).keys() == before


def test_collector_describes_the_families_that_it_collects() -> None:
    collector = CacheCollector(make_cache(1))
    described = [(family.name, family.type, family.documentation) for family in collector.describe()]
    assert described == [(family.name, family.type, family.documentation) for family in collector.collect()]
    assert not any(family.samples for family in collector.describe())


def test_collector_of_two_caches_omits_the_closed_one() -> None:
    registry = CollectorRegistry()
    caches = {"open": make_cache(1), "closed": make_cache(1)}
    registry.register(CacheCollector(caches))
    caches["closed"].close()
    del caches["open"]  # the collector has a copy of the dict
    samples = [sample for family in parse(registry).values() for sample in family.samples]
    assert {sample.labels["cache"] for sample in samples} == {"open"}


class NotACache:
    def stats(self) -> None:
        """Has a method of a cache."""


def test_collector_refuses_invalid_caches_and_names() -> None:
    cache = make_cache(1)
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        ({}, None, ValueError, "cache is an empty dict, it must contain at least 1 cache"),
        (None, None, TypeError, "cache must be an EmbeddingCache or a dict of them, got NoneType"),
        (NotACache(), "a", TypeError, "cache must be an EmbeddingCache or a dict of them, got NotACache"),
        (
            {"a": cache, "b": NotACache()},
            None,
            TypeError,
            "cache 'b' must be an EmbeddingCache, got NotACache",
        ),
        ({"a": cache}, "a", ValueError, "name is 'a', but the dict names its 1 caches"),
        ({3: cache}, None, TypeError, "the name of a cache must be str, got 3 of type int"),
        (cache, b"a", TypeError, "the name of a cache must be str, got b'a' of type bytes"),
        (cache, True, TypeError, "the name of a cache must be str, got True of type bool"),
        (cache, "", ValueError, "the name of a cache is '', it must have at least 1 character"),
        (cache, "a\ud800", ValueError, r"the name of a cache is 'a.ud800', which UTF-8 cannot encode"),
    ]
    for caches, name, error, match in cases:
        with pytest.raises(error, match=match):
            CacheCollector(caches, name)


def test_collector_of_a_cache_that_is_closed_already_is_refused() -> None:
    cache = make_cache(1)
    cache.close()
    for closed in (cache, {"open": make_cache(1), "closed": cache}):
        with pytest.raises(RuntimeError, match="the cache was closed"):
            CacheCollector(closed)  # type: ignore[arg-type]


def test_collector_without_its_package_names_it_as_pip_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    needs = r"CacheCollector needs prometheus-client: pip install 'vitcache\[metrics\]'"
    with pytest.raises(ModuleNotFoundError, match=needs):
        CacheCollector(make_cache(1))
