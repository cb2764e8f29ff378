"""Tiers in use again after failures, and rows that no race, refusal or interrupt may keep or lose."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import (
    LONG,
    Clock,
    fill,
    is_right,
    key_of,
    put,
    rows_of,
    stats_of,
    tier_cache,
    workers_of,
)

from vitcache import WriteBack
from vitcache.cache import lower_tiers
from vitcache.tiers.breaker import FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S, Breaker


def test_cache_that_only_stores_closes_the_breaker_by_a_store() -> None:
    tier, clock = PlantedTier(), Clock()
    with tier_cache(tier, clock=clock) as cache:
        tier.fail("store", OSError("full"))
        put(cache, 1)
        assert (stats_of(cache).is_open, stats_of(cache).store_failures) == (True, 1)
        put(cache, 2)
        assert stats_of(cache).stored == 0  # within the back-off
        clock.advance(FIRST_BACK_OFF_S)
        tier.fail("claim", OSError("full"))
        put(cache, 3)  # a probe that fails
        clock.advance(FIRST_BACK_OFF_S)
        put(cache, 4)
        assert (stats_of(cache).stored, stats_of(cache).is_open) == (0, True)  # the back-off has doubled
        clock.advance(FIRST_BACK_OFF_S)
        put(cache, 5)
        assert (stats_of(cache).stored, stats_of(cache).is_open, stats_of(cache).openings) == (1, False, 1)
        put(cache, 6)
        for number in (1, 2, 3, 4):
            assert is_right(cache, number)
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 6


def test_store_that_cannot_be_queued_leaves_the_probe_to_the_next_call() -> None:
    tier, clock = PlantedTier(), Clock()
    with tier_cache(tier, clock=clock, write_back=WriteBack(hits=0, queue_bytes=32)) as cache:
        tier.fail("store", OSError("full"))
        put(cache, 1)
        clock.advance(FIRST_BACK_OFF_S)
        put(cache, 2, num_rows=3)  # 48 bytes
        assert stats_of(cache).is_open
        put(cache, 3)
        assert (stats_of(cache).stored, stats_of(cache).is_open) == (1, False)


def test_probe_whose_entry_left_does_not_close_the_breaker() -> None:
    tier, clock = PlantedTier(), Clock()
    with tier_cache(tier, clock=clock) as cache:
        tier.fail("store", OSError("full"))
        put(cache, 1)
        clock.advance(FIRST_BACK_OFF_S)
        pause = tier.pause("metrics")
        assert not cache.flush(0)  # its barrier lets the worker read the metrics
        assert pause.started.wait(LONG)
        assert cache.put(key_of(2), rows_of(2))
        cache.stats()  # offers it
        assert cache.discard(key_of(2))
        pause.release()
        assert cache.flush(LONG)
        assert (stats_of(cache).stored, stats_of(cache).is_open) == (0, True)
        put(cache, 3)
        assert (stats_of(cache).stored, stats_of(cache).is_open) == (1, False)


def test_probe_that_an_interrupt_lost_is_followed_by_another() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.fail()
    clock.advance(FIRST_BACK_OFF_S)
    assert breaker.admit() is None  # and it never ends
    clock.advance(LONGEST_BACK_OFF_S - 1)
    assert breaker.admit() is False
    clock.advance(2)
    assert breaker.admit() is None


def test_few_hits_offer_an_entry_while_all_offers_are_refused() -> None:
    clock = Clock()
    with tier_cache(PlantedTier(), clock=clock, write_back=WriteBack()) as cache:
        assert cache.put(key_of(1), rows_of(1))
        workers_of(cache)[0].runner.breaker.fail()
        for _ in range(1000):
            assert is_right(cache, 1)
        assert 2 <= stats_of(cache).skipped_stores <= 12
        clock.advance(FIRST_BACK_OFF_S)
        for _ in range(1100):
            assert is_right(cache, 1)
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 1


def test_entry_that_cannot_be_read_is_offered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with tier_cache(PlantedTier(), write_back=WriteBack(hits=1)) as cache:
        assert cache.put(key_of(1), rows_of(1))
        assert is_right(cache, 1)
        monkeypatch.setattr(lower_tiers.TierBooks, "read", lambda *_: None)  # as while it is being moved
        assert cache.flush(LONG)
        monkeypatch.undo()
        assert stats_of(cache).skipped_stores == 1
        assert is_right(cache, 1)
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 1


@pytest.mark.parametrize("drop", ["discard", "forget", "forget_tenant"])
def test_rows_of_two_fetches_that_began_together_can_be_dropped(
    monkeypatch: pytest.MonkeyPatch, drop: str
) -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier) as cache:
        make_wanted = lower_tiers.Wanted
        fetches: list[Any] = []

        def meanwhile(*arguments: Any) -> Any:
            monkeypatch.undo()
            fetches.append(cache.begin_fetch([key_of(1)], 2))  # another thread begins one here
            return make_wanted(*arguments)

        pause = tier.pause("exists")
        monkeypatch.setattr(lower_tiers, "Wanted", meanwhile)
        fetches.append(cache.begin_fetch([key_of(1)], 2))
        assert pause.started.wait(LONG)
        if drop == "discard":
            cache.discard(key_of(1))
        else:
            with pytest.raises(TimeoutError):
                getattr(cache, drop)(key_of(1) if drop == "forget" else "", timeout_s=0)
        pause.release()
        assert [fetch.wait(LONG) for fetch in fetches] == [[False], [False]]
        assert not len(cache._lower._wanted)  # type: ignore[union-attr]


def test_erase_that_a_tier_owes_is_tried_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    tier = PlantedTier()
    fill(tier, 1, 2)
    for number, num_failures in ((1, 1), (2, 2)):
        caplog.clear()
        with tier_cache(tier, clock=Clock(), write_back=WriteBack(hits=1)) as cache:
            for nth in range(1, num_failures + 1):
                tier.fail("erase", OSError("busy"), nth)
            assert not cache.discard(key_of(number))
            assert cache.flush(LONG)
            assert stats_of(cache).is_open
        assert ("rows of before may be found" in caplog.text) == (num_failures == 2)
    with tier_cache(tier) as cache, caplog.at_level(logging.ERROR):
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, True]
