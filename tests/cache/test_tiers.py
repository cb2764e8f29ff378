"""The two tiers: demotions to the host tier, hits in it, and its evictions."""

from __future__ import annotations

import torch
from cache_cases import KEYS, PAGE_BYTES, make_rows, present, read
from caches import make_cache


def test_evicted_device_entry_is_demoted_and_read_in_the_host_tier() -> None:
    cache = make_cache(3, 3)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1, float(number)))
    assert present(cache) == [0, 1, 2, 3]
    with cache.get(KEYS[0]) as lease:
        assert lease.tier == "host"
        assert lease.pool is not cache.get(KEYS[1]).pool
        assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
    stats = cache.stats()
    assert (stats.demotions, stats.evictions, stats.host_bytes) == (1, 0, PAGE_BYTES)


def test_full_host_tier_evicts_its_least_recently_used_entry() -> None:
    cache = make_cache(1, 2)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1, float(number)))
    cache.get(KEYS[0]).release()
    cache.put(KEYS[3], make_rows(1, 3.0))
    assert present(cache) == [0, 2, 3]
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 0.0))


def test_victim_larger_than_the_host_tier_is_evicted_and_evicts_nothing() -> None:
    cache = make_cache(3, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(3, 1.0))  # demotes 0
    cache.put(KEYS[2], make_rows(1, 2.0))  # 1 is larger than the host tier
    assert present(cache) == [0, 2]


def test_victim_is_evicted_if_all_host_entries_are_leased() -> None:
    cache = make_cache(1, 1)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))
    with cache.get(KEYS[0]) as lease:
        cache.put(KEYS[2], make_rows(1, 2.0))
        assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
    assert present(cache) == [0, 2]


def test_small_host_tier_keeps_the_more_recent_of_two_victims() -> None:
    cache = make_cache(2, 1)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))
    cache.put(KEYS[2], make_rows(2, 2.0))
    assert present(cache) == [1, 2]
    assert torch.equal(read(cache, KEYS[1]), make_rows(1, 1.0))


def test_put_replaces_an_entry_of_the_host_tier() -> None:
    cache = make_cache(1, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))
    cache.put(KEYS[0], make_rows(1, 9.0))
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 9.0))
    assert torch.equal(read(cache, KEYS[1]), make_rows(1, 1.0))
    assert cache.stats().host_bytes == PAGE_BYTES
    cache.check_integrity()


def test_put_that_fits_only_the_host_tier_is_rejected() -> None:
    cache = make_cache(1, 4)
    assert cache.put(KEYS[0], make_rows(2)) is False
    assert cache.stats().host_bytes == 0
