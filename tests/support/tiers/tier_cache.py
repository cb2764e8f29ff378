"""Caches with tiers, for tests, and a clock that a test sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any
from unittest import mock

import torch
from caches import make_cache

from vitcache import WriteBack
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.lower_tiers import LowerTiers
from vitcache.cache.stats import TierStats
from vitcache.tiers.tier_worker import TierWorker

LONG = 60.0  # seconds: no test waits as long unless it fails


class Clock:
    """The time of the breakers of a cache, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def tier_cache(
    *tiers: Any,
    clock: Callable[[], float] = monotonic,
    device_pages: int = 8,
    host_pages: int = 8,
    **options: Any,
) -> EmbeddingCache:
    """Return a cache whose entries are stored in the tiers when they are inserted."""
    defaults = {"weights_name": "weights", "write_back": WriteBack(hits=0), "fetch_timeout_s": LONG}
    with mock.patch("vitcache.cache.lower_tiers.LowerTiers", partial(LowerTiers, clock=clock)):
        return make_cache(device_pages, host_pages, tiers=list(tiers), **(defaults | options))


def key_of(number: int) -> bytes:
    return number.to_bytes(2, "big") * 16


def rows_of(number: int, num_rows: int = 2, width: int = 4) -> torch.Tensor:
    """Rows that tell their key's number."""
    return torch.full((num_rows, width), float(number))


def put(cache: EmbeddingCache, *numbers: int, num_rows: int = 2, **options: Any) -> None:
    """Put entries, and wait until they are stored in the tiers."""
    for number in numbers:
        assert cache.put(key_of(number), rows_of(number, num_rows), **options)
    assert cache.flush(LONG)


def fill(tier: Any, *numbers: int, num_rows: int = 2, **options: Any) -> None:
    """Store entries in a tier by way of another cache."""
    with tier_cache(tier, device_pages=256, host_pages=8, **options) as cache:  # nothing is demoted
        put(cache, *numbers, num_rows=num_rows)
        assert stats_of(cache).stored == len(numbers)


def stats_of(cache: EmbeddingCache, tier: int = 0) -> TierStats:
    return cache.stats().tiers[tier]


def is_right(cache: EmbeddingCache, number: int, num_rows: int = 2) -> bool:
    """Whether an entry is in the cache; its rows must be right."""
    lease = cache.get(key_of(number))
    if lease is None:
        return False
    with lease:
        assert torch.equal(lease.to_tensor(), rows_of(number, num_rows))
    return True


def workers_of(cache: EmbeddingCache) -> list[TierWorker]:
    assert cache._lower is not None
    return cache._lower._workers
