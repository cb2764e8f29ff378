"""Promotion: host entries are copied to the device tier, and are demoted again without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, WIDTH, make_full, make_rows, present, read
from caches import make_cache

from vitcache import embed_tokens, scatter_embeddings
from vitcache.cache.embedding_cache import EmbeddingCache


def make_demoted(device_pages: int = 1, host_pages: int = 2, **options: Any) -> EmbeddingCache:
    """A cache with entry 0 in the host tier. Other entries fill the device tier."""
    cache = make_full(device_pages, host_pages, **options)
    assert cache.put(KEYS[device_pages], make_rows(1, float(device_pages)))
    return cache


def promote(cache: EmbeddingCache, key: bytes) -> bool:
    """Promote an entry of the host tier."""
    with cache.get(key) as lease:
        reservation = cache.promote(lease)
        if reservation is None:
            return False
        reservation.write(lease.to_tensor())
        return reservation.commit()


def tier(cache: EmbeddingCache, key: bytes) -> str:
    with cache.get(key) as lease:
        return lease.tier


def test_promoted_entry_is_in_both_tiers_and_hit_in_the_device_tier() -> None:
    cache = make_demoted(2)
    with cache.get(KEYS[0]) as lease:
        assert (lease.tier, lease.hits) == ("host", 1)
    assert promote(cache, KEYS[0])
    with cache.get(KEYS[0]) as lease:
        assert (lease.tier, lease.hits) == ("device", 1)
        assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
    stats = cache.stats()
    assert (stats.promotions, stats.insertions, stats.entries) == (1, 3, 3)
    assert (stats.device_bytes, stats.host_bytes) == (2 * PAGE_BYTES, 2 * PAGE_BYTES)
    cache.check_integrity()


@pytest.mark.parametrize("operation", ["scatter", "embed"])
def test_launch_that_places_a_host_entry_also_promotes_it(operation: str) -> None:
    cache = make_demoted()
    with cache.get(KEYS[0]) as lease, cache.promote(lease) as reservation:
        if operation == "scatter":
            out = torch.full((4, WIDTH), float("nan"))
            scatter_embeddings(out, [lease], [1], store=[reservation])
        else:
            ids, weight = torch.zeros(4, dtype=torch.int64), torch.ones(1, WIDTH)
            out = embed_tokens(ids, weight, [lease], [1], store=[reservation])
        assert reservation.commit()
    assert torch.equal(out[1:3], make_rows(1, 0.0))
    assert tier(cache, KEYS[0]) == "device"
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 0.0))


def test_entry_promoted_and_demoted_repeatedly_is_copied_to_the_host_once(copies: list[int]) -> None:
    cache = make_demoted()
    for _ in range(5):
        assert promote(cache, KEYS[0])
        assert promote(cache, KEYS[1])
        assert torch.equal(read(cache, KEYS[0]), make_rows(1, 0.0))
        cache.check_integrity()
    stats = cache.stats()
    assert copies == [1, 1]
    assert (stats.demotions, stats.writebacks, stats.promotions, stats.evictions) == (11, 2, 10, 0)


def test_host_tier_evicts_host_copies_first_and_counts_no_eviction(
    copies: list[int],
) -> None:
    cache = make_demoted(2, 2)
    assert promote(cache, KEYS[0])  # the host tier is full: entry 1, and the host copy of 0
    cache.get(KEYS[0]).release()
    assert cache.put(KEYS[3], make_rows(1, 3.0))  # demotes 2, for which the host copy is evicted
    assert [tier(cache, key) for key in KEYS[:4]] == ["device", "host", "host", "device"]
    assert cache.stats().evictions == 0
    assert cache.put(KEYS[4], make_rows(2, 4.0))  # 0 has no host copy now, so it is copied again
    assert present(cache) == [0, 3, 4]
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 0.0))
    assert sum(copies) == cache.stats().writebacks == 5
    cache.check_integrity()


def test_leased_host_copy_is_not_evicted() -> None:
    cache = make_demoted(2, 1)
    with cache.get(KEYS[0]) as lease:
        assert promote(cache, KEYS[0])  # 1 cannot be demoted: the host tier is full
        assert cache.put(KEYS[3], make_rows(1, 3.0))
        assert present(cache) == [0, 3]
        assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
    cache.check_integrity()


@pytest.mark.parametrize(
    "end",
    [
        lambda cache: cache.put(KEYS[0], make_rows(1, 9.0)),
        lambda cache: cache.get(KEYS[0], num_rows=1),
        lambda cache: cache.advance_epoch(),
        lambda cache: cache.clear(),
    ],
    ids=["put", "get of another length", "advance_epoch", "clear"],
)
@pytest.mark.parametrize("leased", [False, True])
def test_dropped_entry_is_dropped_in_both_tiers(
    end: Callable[[EmbeddingCache], object], leased: bool
) -> None:
    cache = make_demoted(2, 2)
    lease = cache.get(KEYS[0])
    assert promote(cache, KEYS[0])
    if not leased:
        lease.release()
    end(cache)
    cache.check_integrity()
    found = cache.get(KEYS[0])
    assert found is None or torch.equal(found.to_tensor(), make_rows(1, 9.0))
    if leased:
        assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
        lease.release()
    for number in range(3, 8):
        assert cache.put(KEYS[number], make_rows(1, float(number)))
        cache.check_integrity()


def test_promote_without_a_host_entry_or_available_pages_returns_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = make_demoted(1, 2)
    with cache.get(KEYS[1]) as device_lease, cache.get(KEYS[0]) as host_lease:
        assert cache.promote(device_lease) is None
        assert cache.promote(host_lease) is None  # the only device page is leased
    with cache.get(KEYS[0]) as dropped:
        cache.put(KEYS[0], make_rows(1, 9.0))
        assert cache.promote(dropped) is None
    assert (cache.stats().rejections, cache.stats().promotions, caplog.records) == (0, 0, [])
    with pytest.raises(RuntimeError, match="this lease of 2 rows was released"):
        cache.promote(dropped)
    with pytest.raises(TypeError, match="lease must be a Lease, got bytes"):
        cache.promote(KEYS[0])  # type: ignore[arg-type]
    with cache.get(KEYS[0]) as foreign, pytest.raises(ValueError, match="is of another cache"):
        make_cache(1).promote(foreign)


@pytest.mark.parametrize(
    "supersede",
    [
        lambda cache: cache.put(KEYS[0], make_rows(1, 9.0)),
        lambda cache: promote(cache, KEYS[0]),
        lambda cache: cache.advance_epoch(),
    ],
    ids=["replaced", "promoted", "epoch"],
)
def test_superseded_promotion_inserts_nothing_and_counts_no_rejection(
    supersede: Callable[[EmbeddingCache], object], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_demoted(2, 2)
    with cache.get(KEYS[0]) as lease, cache.promote(lease) as reservation:
        reservation.write(lease.to_tensor())
        supersede(cache)
        expected = read(cache, KEYS[0]) if KEYS[0] in cache else None
        assert not reservation.commit()
    assert (expected is None) == (KEYS[0] not in cache)
    assert expected is None or torch.equal(read(cache, KEYS[0]), expected)
    assert (cache.stats().rejections, caplog.records) == (0, [])
    cache.check_integrity()


def test_cancelled_promotion_leaves_the_entry_in_the_host_tier() -> None:
    cache = make_demoted(2, 2)
    with cache.get(KEYS[0]) as lease, cache.promote(lease):
        pass
    assert tier(cache, KEYS[0]) == "host"
    assert cache.stats().promotions == 0
    cache.check_integrity()


def test_lease_hits_start_at_one_in_each_tier() -> None:
    cache = make_demoted(1, 2)
    hits = []
    for _ in range(3):
        with cache.get(KEYS[0]) as lease:
            hits.append(lease.hits)
    assert promote(cache, KEYS[0])
    cache.put(KEYS[2], make_rows(1, 2.0))  # demotes 0 again
    with cache.get(KEYS[0]) as lease:
        hits.append(lease.hits)
    assert hits == [1, 2, 3, 1]
