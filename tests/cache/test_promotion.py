"""Promotion: host entries come back to the device in the launch that places them, and go again for free."""

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
    """A cache with entry 0 in the host tier, and others that fill the device."""
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


def test_an_entry_that_comes_back_is_in_both_tiers_and_found_on_the_device() -> None:
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
def test_the_launch_that_places_a_host_hit_also_promotes_it(operation: str) -> None:
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


def test_an_entry_is_written_back_once_however_often_it_comes_and_goes(copies: list[int]) -> None:
    cache = make_demoted()
    for _ in range(5):
        assert promote(cache, KEYS[0])
        assert promote(cache, KEYS[1])
        assert torch.equal(read(cache, KEYS[0]), make_rows(1, 0.0))
        cache.check_integrity()
    stats = cache.stats()
    assert copies == [1, 1]
    assert (stats.demotions, stats.writebacks, stats.promotions, stats.evictions) == (11, 2, 10, 0)


def test_copies_of_what_is_on_the_device_are_the_first_to_give_room_and_no_evictions(
    copies: list[int],
) -> None:
    cache = make_demoted(2, 2)
    assert promote(cache, KEYS[0])  # the host tier is full: of 1, and of the copy of 0
    cache.get(KEYS[0]).release()
    assert cache.put(KEYS[3], make_rows(1, 3.0))  # 2 goes there in place of the copy
    assert [tier(cache, key) for key in KEYS[:4]] == ["device", "host", "host", "device"]
    assert cache.stats().evictions == 0
    assert cache.put(KEYS[4], make_rows(2, 4.0))  # 0 has no copy any more: it is written again
    assert present(cache) == [0, 3, 4]
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 0.0))
    assert sum(copies) == cache.stats().writebacks == 5
    cache.check_integrity()


def test_a_leased_copy_stays_where_it_is() -> None:
    cache = make_demoted(2, 1)
    with cache.get(KEYS[0]) as held:
        assert promote(cache, KEYS[0])  # 1 cannot go to the host tier, which is full
        assert cache.put(KEYS[3], make_rows(1, 3.0))
        assert present(cache) == [0, 3]
        assert torch.equal(held.to_tensor(), make_rows(1, 0.0))
    cache.check_integrity()


@pytest.mark.parametrize(
    "end",
    [
        lambda cache: cache.put(KEYS[0], make_rows(1, 9.0)),
        lambda cache: cache.get(KEYS[0], num_rows=1),
        lambda cache: cache.advance_epoch(),
        lambda cache: cache.clear(),
    ],
    ids=["replaced", "of another length", "epoch", "clear"],
)
@pytest.mark.parametrize("leased", [False, True])
def test_what_ends_an_entry_ends_both_of_its_copies(
    end: Callable[[EmbeddingCache], object], leased: bool
) -> None:
    cache = make_demoted(2, 2)
    held = cache.get(KEYS[0])
    assert promote(cache, KEYS[0])
    if not leased:
        held.release()
    end(cache)
    cache.check_integrity()
    found = cache.get(KEYS[0])
    assert found is None or torch.equal(found.to_tensor(), make_rows(1, 9.0))
    if leased:
        assert torch.equal(held.to_tensor(), make_rows(1, 0.0))
        held.release()
    for number in range(3, 8):
        assert cache.put(KEYS[number], make_rows(1, float(number)))
        cache.check_integrity()


def test_what_needs_no_promotion_or_has_no_room_for_it_gets_none(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_demoted(1, 2)
    with cache.get(KEYS[1]) as on_the_device, cache.get(KEYS[0]) as on_the_host:
        assert cache.promote(on_the_device) is None
        assert cache.promote(on_the_host) is None  # what is on the device is leased
    with cache.get(KEYS[0]) as gone:
        cache.put(KEYS[0], make_rows(1, 9.0))
        assert cache.promote(gone) is None
    assert (cache.stats().rejections, cache.stats().promotions, caplog.records) == (0, 0, [])
    with pytest.raises(RuntimeError, match="this lease of 2 rows was released"):
        cache.promote(gone)
    with pytest.raises(TypeError, match="lease must be a Lease, it is bytes"):
        cache.promote(KEYS[0])  # type: ignore[arg-type]
    with cache.get(KEYS[0]) as foreign, pytest.raises(ValueError, match="is of another cache"):
        make_cache(1).promote(foreign)


@pytest.mark.parametrize(
    "overtake",
    [
        lambda cache: cache.put(KEYS[0], make_rows(1, 9.0)),
        lambda cache: promote(cache, KEYS[0]),
        lambda cache: cache.advance_epoch(),
    ],
    ids=["replaced", "promoted", "epoch"],
)
def test_a_promotion_that_is_overtaken_enters_nothing_and_is_no_rejection(
    overtake: Callable[[EmbeddingCache], object], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_demoted(2, 2)
    with cache.get(KEYS[0]) as lease, cache.promote(lease) as reservation:
        reservation.write(lease.to_tensor())
        overtake(cache)
        expected = read(cache, KEYS[0]) if KEYS[0] in cache else None
        assert not reservation.commit()
    assert (expected is None) == (KEYS[0] not in cache)
    assert expected is None or torch.equal(read(cache, KEYS[0]), expected)
    assert (cache.stats().rejections, caplog.records) == (0, [])
    cache.check_integrity()


def test_a_promotion_that_is_given_up_leaves_the_entry_in_the_host_tier() -> None:
    cache = make_demoted(2, 2)
    with cache.get(KEYS[0]) as lease, cache.promote(lease):
        pass
    assert tier(cache, KEYS[0]) == "host"
    assert cache.stats().promotions == 0
    cache.check_integrity()


def test_an_entry_counts_its_hits_anew_in_each_tier() -> None:
    cache = make_demoted(1, 2)
    hits = []
    for _ in range(3):
        with cache.get(KEYS[0]) as lease:
            hits.append(lease.hits)
    assert promote(cache, KEYS[0])
    cache.put(KEYS[2], make_rows(1, 2.0))  # it goes back
    with cache.get(KEYS[0]) as lease:
        hits.append(lease.hits)
    assert hits == [1, 2, 3, 1]
