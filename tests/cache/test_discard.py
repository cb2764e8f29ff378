"""`discard` drops an entry from every tier, and `take_evicted` names the keys that left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import KEYS, make_full, make_rows, present, read
from caches import make_cache

from vitcache import EmbeddingCache
from vitcache.testing import inspect


@pytest.mark.parametrize("tier", ["device", "host", "both"])
def test_discard_drops_the_entry_from_every_tier_and_counts_no_miss(tier: str) -> None:
    cache = make_cache(4, 4)
    cache.put(KEYS[0], make_rows(2), tier=tier)
    cache.put(KEYS[1], make_rows(1))
    assert cache.discard(KEYS[0])
    assert not cache.discard(KEYS[0])
    assert present(cache) == [1]
    stats = cache.stats()
    assert (stats.misses, stats.evictions, stats.entries) == (0, 1, 1)
    assert (inspect(cache).device_pool.num_free, inspect(cache).host_pool.num_free) == (3, 4)
    cache.check_integrity()


def test_discarded_rows_stay_readable_while_they_are_leased() -> None:
    cache = make_full(1)
    lease = cache.get(KEYS[0])
    assert cache.discard(KEYS[0])
    assert not cache.put(KEYS[1], make_rows(1))
    assert torch.equal(lease.to_tensor(), make_rows(1))
    lease.release()
    assert cache.put(KEYS[1], make_rows(1))


def test_demotion_under_way_does_not_bring_discarded_rows_back() -> None:
    cache = make_full(1, 1, record_evictions=4)
    with cache.reserve(KEYS[1], 1) as reservation:  # demotes entry 0
        assert KEYS[0] not in cache
        assert cache.discard(KEYS[0])
        assert not cache.discard(KEYS[0])
        assert cache.take_evicted() == [KEYS[0]]
        cache.check_integrity()
        assert reservation.commit()
    assert present(cache) == [1]
    assert cache.take_evicted() == []
    assert inspect(cache).host_pool.num_free == 1
    cache.check_integrity()


def test_promotion_of_a_discarded_entry_inserts_nothing() -> None:
    cache = make_full(1, 1)
    cache.put(KEYS[1], make_rows(1, 1.0))  # demotes entry 0
    with cache.get(KEYS[0]) as lease, cache.promote(lease) as reservation:
        assert cache.discard(KEYS[0])
        reservation.write(lease.to_tensor())
        assert reservation.commit_lease() is None
    assert KEYS[0] not in cache
    cache.check_integrity()


def test_early_copy_of_a_discarded_entry_is_dropped() -> None:
    cache = make_full(1, 1)
    cache.expect([1])
    assert cache.discard(KEYS[0])
    assert inspect(cache).host_pool.num_free == 1
    cache.check_integrity()


def test_reservation_under_way_inserts_its_rows_after_a_discard() -> None:
    cache = make_full(2)
    with cache.reserve(KEYS[5], 2) as reservation:
        assert not cache.discard(KEYS[5])
        reservation.write(make_rows(1, 5.0))
        assert reservation.commit()
    assert torch.equal(read(cache, KEYS[5]), make_rows(1, 5.0))


def test_take_evicted_names_each_key_once_in_the_order_in_which_it_left() -> None:
    cache = make_full(3, record_evictions=10)
    assert cache.take_evicted() == []
    cache.put(KEYS[5], make_rows(2))  # evicts 0 and 1
    cache.get(KEYS[2], num_rows=7)  # another length
    cache.put(KEYS[1], make_rows(1))  # is back
    cache.discard(KEYS[5])
    cache.put(KEYS[5], make_rows(1))
    cache.discard(KEYS[5])
    assert inspect(cache).evicted == [KEYS[0], KEYS[2], KEYS[5]]
    assert cache.take_evicted() == [KEYS[0], KEYS[2], KEYS[5]]
    assert cache.take_evicted() == []
    cache.check_integrity()


def test_take_evicted_names_no_key_that_is_kept_in_the_host_tier() -> None:
    cache = make_full(1, 1, record_evictions=10)
    cache.put(KEYS[1], make_rows(1))  # demotes 0
    assert cache.take_evicted() == []
    cache.put(KEYS[2], make_rows(1))  # demotes 1, evicts 0
    assert cache.take_evicted() == [KEYS[0]]
    cache.discard(KEYS[1])
    with cache.reserve(KEYS[3], 1):
        assert cache.take_evicted() == [KEYS[1]]  # 2 is being demoted
    assert cache.take_evicted() == [KEYS[2]]  # its demotion was cancelled


def test_replaced_entry_is_named_only_while_its_key_is_not_in_the_cache() -> None:
    cache = make_full(1, record_evictions=10)
    cache.put(KEYS[0], make_rows(1, 1.0))
    assert cache.take_evicted() == []
    with cache.reserve(KEYS[0], 1):
        pass  # cancelled: the old rows were dropped for the reservation
    assert cache.take_evicted() == [KEYS[0]]


def test_record_is_bounded_and_forgets_the_oldest_keys() -> None:
    cache = make_full(1, record_evictions=2)
    for number in (1, 2, 3, 2, 4):
        cache.put(KEYS[number], make_rows(1))
    assert cache.take_evicted() == [KEYS[3], KEYS[2]]
    unbounded = make_full(1, record_evictions=2**70)
    unbounded.put(KEYS[1], make_rows(1))
    assert unbounded.take_evicted() == [KEYS[0]]


@pytest.mark.parametrize("empty", [EmbeddingCache.clear, EmbeddingCache.advance_epoch])
def test_a_new_epoch_empties_the_record(empty: Any) -> None:
    cache = make_full(2, 2, record_evictions=10)
    cache.discard(KEYS[0])
    with cache.reserve(KEYS[3], 4):  # demotes entry 1
        empty(cache)
    assert cache.take_evicted() == []
    cache.put(KEYS[0], make_rows(1))
    cache.discard(KEYS[0])
    assert cache.take_evicted() == [KEYS[0]]
    cache.check_integrity()


def test_corrupt_entry_is_named() -> None:
    cache = make_cache(1, 1, checksum=True, record_evictions=10)
    cache.put(KEYS[0], make_rows(1), tier="host")
    with cache.get(KEYS[0]) as lease:
        lease.pool[lease.pages[0] * 2] += 1
    assert cache.get(KEYS[0]) is None
    assert cache.take_evicted() == [KEYS[0]]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda cache: cache.discard("a" * 32), TypeError, "key must be bytes, got str"),
        (lambda cache: cache.discard(bytes(31)), ValueError, "key has 31 bytes, it must have 32"),
        (lambda cache: cache.take_evicted(), RuntimeError, "record_evictions is 0, it must be at least 1"),
        (lambda _: make_cache(1, record_evictions=-1), ValueError, "record_evictions is -1, .* at least 0"),
        (lambda _: make_cache(1, record_evictions=True), TypeError, "record_evictions must be an int"),
        (lambda _: make_cache(1, record_evictions=1.5), TypeError, "record_evictions must be an int"),
    ],
)
def test_invalid_call_raises_and_changes_nothing(call: Any, error: type[Exception], match: str) -> None:
    cache = make_full(2)
    before = cache.stats()
    with pytest.raises(error, match=match):
        call(cache)
    assert cache.stats() == before


def test_calls_of_a_closed_cache_raise() -> None:
    for cache in (make_full(1), make_full(1, record_evictions=1)):
        cache.close()
        for call in (lambda cache: cache.discard(KEYS[0]), EmbeddingCache.take_evicted):
            with pytest.raises(RuntimeError, match="the cache was closed"):
                call(cache)
