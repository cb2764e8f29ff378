"""The counts of a scheduler as plain JSON, for SGLang's `/server_info`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vitcache._version import __version__
from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.sglang import service
from vitcache.cache.stats import CacheStats


def server_counts() -> dict[str, Any]:
    """Return the counts of this process, which `stats` returns, and whether vitcache builds the steps.

    Returns
    -------
    dict
        ``version``, ``is_disabled`` (VITCACHE_DISABLE is set), and each field of `SglangStats`. Each of its
        ``caches`` has the fields of `CacheStats`, and each of their ``tiers`` those of `TierStats`. All
        values are dicts, lists, str, int, float and bool.

    Notes
    -----
    Any thread may call it. It neither makes a cache nor waits for the device.
    """
    stats = service.SERVICE.stats()
    counts = {field.name: getattr(stats, field.name) for field in fields(stats)}
    counts |= {"originals": dict(stats.originals), "caches": [_of_cache(cache) for cache in stats.caches]}
    return {"version": __version__, "is_disabled": is_disabled(), **counts}


def _of_cache(stats: CacheStats) -> dict[str, Any]:
    counts = {field.name: getattr(stats, field.name) for field in fields(stats)}
    tiers = [{field.name: getattr(tier, field.name) for field in fields(tier)} for tier in stats.tiers]
    for tier in tiers:
        tier["own"] = dict(tier["own"])
    counts |= {"device": stats.device._asdict(), "host": stats.host._asdict(), "tiers": tiers}
    return counts | {"encode_ms_per_row": {str(width): ms for width, ms in stats.encode_ms_per_row.items()}}
