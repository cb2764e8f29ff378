"""The counts of the tiers below the host tier as metric families of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vitcache.cache.stats import CacheStats, TierStats


class TierFamily(NamedTuple):
    """A family: its kind, name and text, the labels behind ``cache``, and the samples by label values."""

    kind: str
    name: str
    text: str
    labels: tuple[str, ...]
    values: Mapping[Any, float]


# Fields of `TierStats` by the value of the label `outcome`.
_FETCHES = {
    "hit": "hits",
    "miss": "misses",
    "damaged": "damaged",
    "refused": "refused",
    "not_admitted": "not_admitted",
}
_STORES = {"stored": "stored", "failed": "store_failures", "skipped": "skipped_stores"}
_OUTCOMES = {
    "fetches": ("Entries that a tier below the host tier was asked for, by outcome.", _FETCHES),
    "stores": ("Entries that were to be copied to a tier below the host tier, by outcome.", _STORES),
}
_COUNTERS = {
    "late": "Entries that a tier had not returned at the deadline.",
    "failures": "Calls of a tier that failed.",
    "openings": "How many times the breaker of a tier has opened.",
    "erased": "Entries that were erased in a tier.",
    "not_worth": "Entries that were not fetched or stored, because the transfer takes too long.",
    "fetched_bytes": "Bytes of the rows that were fetched from a tier.",
    "stored_bytes": "Bytes of the rows that were stored in a tier.",
    "fetch_seconds": "Seconds of the calls that fetched these bytes.",
}
_GAUGES = {
    "is_open": "Whether the breaker of a tier is open: the tier is not asked.",
    "quarantined_bytes": "Bytes of rows whose memory a tier may still use after a failure.",
    "capacity_bytes": "Most bytes that a tier keeps.",
    "bytes_per_second": "The bandwidth of a tier, as its last fetches show it.",
    "latency_seconds": "The time of a fetch from a tier beside that of its bytes.",
}
_ENCODE = "The measured encode time of a row, by the elements of the row."
_OWN = "The own counts of a tier, by name."


def tier_families(stats: Mapping[str, CacheStats]) -> Iterator[TierFamily]:
    """Yield the families of the tiers of all caches, and of their encode times. `stats` are by name."""
    tiers: list[tuple[str, TierStats]] = [(name, tier) for name, each in stats.items() for tier in each.tiers]
    for name, (text, outcomes) in _OUTCOMES.items():
        values = {
            (cache, tier.name, outcome): getattr(tier, field)
            for cache, tier in tiers
            for outcome, field in outcomes.items()
        }
        yield TierFamily("Counter", f"tier_{name}", text, ("tier", "outcome"), values)
    for kind, texts in (("Counter", _COUNTERS), ("Gauge", _GAUGES)):
        for name, text in texts.items():
            numbers = {(cache, tier.name): float(getattr(tier, name)) for cache, tier in tiers}
            yield TierFamily(kind, f"tier_{name}", text, ("tier",), numbers)
    times = {
        (cache, str(width)): ms / 1e3
        for cache, each in stats.items()
        for width, ms in each.encode_ms_per_row.items()
    }
    yield TierFamily("Gauge", "row_encode_seconds", _ENCODE, ("row_width",), times)
    own = {(cache, tier.name, count): value for cache, tier in tiers for count, value in tier.own.items()}
    yield TierFamily("Gauge", "tier_own", _OWN, ("tier", "count"), own)
