"""Write-back: which entries are copied to the tiers, in which order with drops, and how many may wait."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import LONG, Clock, fill, is_right, key_of, put, rows_of, stats_of, tier_cache

from vitcache import WriteBack
from vitcache.testing import inspect


def stored(tier: PlantedTier, *numbers: int, num_rows: int = 2, **options: Any) -> list[bool]:
    """Whether entries are found in the tier after a restart."""
    with tier_cache(tier, host_pages=64, **options) as cache:
        return cache.fetch([key_of(number) for number in numbers], num_rows)


@pytest.mark.parametrize("hits", [1, 2, 3])
def test_entry_is_stored_at_the_hit_of_the_rule(hits: int) -> None:
    tier = PlantedTier()
    with tier_cache(tier, write_back=WriteBack(hits=hits)) as cache:
        assert cache.put(key_of(1), rows_of(1))
        for number in range(4):
            assert cache.flush(LONG)
            assert stats_of(cache).stored == (number >= hits)
            cache.get(key_of(1)).release()
    assert stored(tier, 1) == [True]


def test_hits_of_many_look_ups_are_counted() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache, tier_cache(PlantedTier(), write_back=WriteBack(hits=1)) as by_hits:
        for each in (cache, by_hits):
            assert each.put(key_of(1), rows_of(1))
            for lease in each.get_many([key_of(1), key_of(2)]):
                if lease is not None:
                    lease.release()
            assert each.flush(LONG)
            assert stats_of(each).stored == 1


@pytest.mark.parametrize(("encode_ms", "count"), [(None, 0), (49.0, 0), (50.0, 1)])
def test_entry_of_a_long_encode_is_stored_when_it_is_inserted(encode_ms: float | None, count: int) -> None:
    tier = PlantedTier()
    with tier_cache(tier, write_back=WriteBack()) as cache:
        assert cache.put(key_of(1), rows_of(1), encode_ms=encode_ms)
        with cache.reserve(key_of(2), 2, encode_ms=encode_ms) as reservation:
            reservation.write(rows_of(2))
            assert reservation.commit()
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 2 * count


def test_fetched_entry_is_not_stored_again() -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier, write_back=WriteBack(hits=1)) as cache:
        assert cache.fetch([key_of(1)], 2) == [True]
        assert is_right(cache, 1)
        assert cache.flush(LONG)
        assert stats_of(cache).stored + stats_of(cache).skipped_stores == 0


@pytest.mark.parametrize("tier_name", ["device", "host", "both"])
def test_rows_of_each_tier_are_stored(tier_name: str) -> None:
    tier = PlantedTier()
    with tier_cache(tier, checksum=True) as cache:
        put(cache, 1, num_rows=5, tier=tier_name)
        assert stats_of(cache).stored == 1
    with tier_cache(tier, checksum=True) as cache:
        assert cache.fetch([key_of(1)], 5) == [True]
        assert is_right(cache, 1, 5)


def test_bytes_that_wait_are_bounded_and_a_later_hit_offers_again() -> None:
    tier = PlantedTier()
    num_bytes = 2 * 4 * 4
    with tier_cache(tier, write_back=WriteBack(hits=0, queue_bytes=2 * num_bytes)) as cache:
        pause = tier.pause("store")
        assert cache.put(key_of(0), rows_of(0))
        cache.stats()  # drains
        assert pause.started.wait(LONG)
        for number in range(1, 5):
            assert cache.put(key_of(number), rows_of(number))
        assert stats_of(cache).skipped_stores == 2
        pause.release()
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 3
        assert all(is_right(cache, number) for number in range(5))
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 5


def test_entry_that_left_before_its_store_ran_is_not_stored() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        pause = tier.pause("store")
        assert cache.put(key_of(1), rows_of(1))
        cache.stats()
        assert pause.started.wait(LONG)
        assert cache.put(key_of(2), rows_of(2))
        assert cache.put(key_of(3), rows_of(3))
        cache.stats()
        assert cache.discard(key_of(2))  # waits in the queue
        assert cache.discard(key_of(1))  # is being stored
        pause.release()
        assert cache.flush(LONG)
        assert (stats_of(cache).stored, stats_of(cache).skipped_stores, stats_of(cache).erased) == (2, 1, 1)
        cache.check_integrity()
    assert stored(tier, 1, 2, 3) == [False, False, True]


def test_rows_that_are_stored_are_not_overwritten_meanwhile() -> None:
    tier = PlantedTier()
    with tier_cache(tier, device_pages=1, host_pages=1) as cache:
        pause = tier.pause("store")
        assert cache.put(key_of(1), rows_of(1))
        cache.stats()
        assert pause.started.wait(LONG)
        assert not cache.put(key_of(2), rows_of(2))  # the only page is leased by the worker
        pause.release()
        assert cache.flush(LONG)
        assert cache.put(key_of(2), rows_of(2))
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)], 2) == [True]
        assert is_right(cache, 1)


def test_entry_of_an_earlier_epoch_is_not_published_under_the_new_name() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        pause = tier.pause("claim")
        assert cache.put(key_of(1), rows_of(1))
        cache.stats()
        assert pause.started.wait(LONG)
        assert cache.put(key_of(2), rows_of(2))
        cache.stats()  # the offer of the second has the old name
        inspect(cache).ledger.advance()
        pause.release()
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 0
        assert stats_of(cache).skipped_stores == 2
        cache.check_integrity()


def test_corrupt_rows_are_not_stored() -> None:
    tier = PlantedTier()
    with tier_cache(tier, checksum=True, write_back=WriteBack(hits=1)) as cache:
        assert cache.put(key_of(1), rows_of(1), tier="host")
        with cache.get(key_of(1)) as lease:
            lease.segments()[0][0, 0] = -1
        assert cache.flush(LONG)
        assert (stats_of(cache).stored, cache.stats().corruptions) == (0, 1)


def test_claim_of_another_process_leaves_the_store_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = PlantedTier()
    real = tier.claim
    monkeypatch.setattr(tier, "claim", lambda names, ttl_s: [False])
    with tier_cache(tier) as cache:
        put(cache, 1)
        assert (stats_of(cache).skipped_stores, tier.calls["store"]) == (1, 0)
        monkeypatch.setattr(tier, "claim", real)  # the other process has died: a later hit offers again
        for _ in range(2):  # stored at the first hit, and not offered at the second
            assert is_right(cache, 1)
            assert cache.flush(LONG)
            assert (stats_of(cache).stored, tier.calls["claim"]) == (1, 1)


def test_entry_that_another_process_has_stored_is_not_offered_again() -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier) as cache:
        put(cache, 1)
        assert is_right(cache, 1)
        assert cache.flush(LONG)
        assert (stats_of(cache).skipped_stores, tier.calls["claim"]) == (1, 2)


def test_entry_that_has_no_room_in_the_tier_is_offered_again() -> None:
    tier = PlantedTier(8)
    with tier_cache(tier) as cache:
        put(cache, 1)
        assert stats_of(cache).store_failures == 1
        assert is_right(cache, 1)
        assert cache.flush(LONG)
        assert stats_of(cache).store_failures == 2
        assert not stats_of(cache).is_open


def test_stores_are_not_offered_while_the_breaker_is_open() -> None:
    tier, clock = PlantedTier(), Clock()
    with tier_cache(tier, clock=clock) as cache:
        tier.fail("exists", OSError("unplugged"))
        cache.fetch([key_of(9)], 2)
        put(cache, 1)
        assert (stats_of(cache).stored, stats_of(cache).skipped_stores) == (0, 1)
        clock.advance(1)
        cache.fetch([key_of(9)], 2)
        assert is_right(cache, 1)
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 1


def test_close_finishes_the_stores_that_wait() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        for number in range(8):
            assert cache.put(key_of(number), rows_of(number))
    assert stored(tier, *range(8)) == [True] * 8


def test_flush_returns_false_at_its_limit() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        pause = tier.pause("store")
        assert cache.put(key_of(1), rows_of(1))
        assert not cache.flush(0.01)
        pause.release()
        assert cache.flush(LONG)


def test_rows_of_bfloat16_come_back_bit_by_bit() -> None:
    tier = PlantedTier()
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).bfloat16()
    with tier_cache(tier, dtype=torch.bfloat16) as cache:
        assert cache.put(key_of(1), rows)
    with tier_cache(tier, dtype=torch.bfloat16) as cache:
        assert cache.fetch([key_of(1)], 3) == [True]
        with cache.get(key_of(1)) as lease:
            assert torch.equal(lease.to_tensor(), rows)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"hits": -1}, ValueError, "hits is -1"),
        ({"hits": True}, TypeError, "hits must be an int"),
        ({"encode_ms": "1"}, TypeError, "encode_ms must be a number"),
        ({"encode_ms": float("nan")}, ValueError, "encode_ms is nan"),
        ({"queue_bytes": "1 gigabyte"}, ValueError, "queue_bytes"),
    ],
)
def test_wrong_rules_are_refused(options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        WriteBack(**options)


def test_rule_cannot_be_changed() -> None:
    rule = WriteBack(queue_bytes="1MiB")
    assert rule.queue_bytes == 1 << 20
    with pytest.raises(FrozenInstanceError):
        rule.hits = 3  # type: ignore[misc]
