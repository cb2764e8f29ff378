"""Faults of a tier: late writes, unknown outcomes, exceptions, a failing open or close."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import LONG, Clock, fill, is_right, key_of, put, rows_of, stats_of, tier_cache

from vitcache.tiers import tier_engine
from vitcache.tiers.breaker import FIRST_BACK_OFF_S

ENTRY_BYTES = 2 * 4 * 4


def test_pages_of_an_unsafe_fetch_are_not_reused_before_close_has_returned() -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, 1)
    with tier_cache(tier, clock=clock, host_pages=2) as cache:
        tier.return_unsafe()
        pause = tier.pause("close")
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        assert fetch.wait(LONG) == [False]  # it is not waited for `close`
        assert stats_of(cache).quarantined_bytes == ENTRY_BYTES
        assert cache.put(key_of(2), rows_of(2), tier="host")
        assert not cache.put(key_of(3), rows_of(3, 4), tier="host")  # one of the two pages is in quarantine
        assert tier.write_late() == ENTRY_BYTES
        assert is_right(cache, 2)
        cache.check_integrity()
        pause.release()
        assert cache.flush(LONG)
        assert tier.write_late() == 0
        assert stats_of(cache).quarantined_bytes == 0
        assert cache.put(key_of(3), rows_of(3, 4), tier="host")
        assert is_right(cache, 3, 4)
        cache.check_integrity()
        assert (tier.calls["close"], stats_of(cache).failures, stats_of(cache).is_open) == (2, 1, True)
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1)], 2) == [True]  # it was opened again
        assert is_right(cache, 1)


def test_unknown_outcome_counts_as_unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier) as cache:
        monkeypatch.setattr(tier, "fetch", lambda fetches: [-800 for _ in fetches])
        pause = tier.pause("close")
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        assert fetch.wait(LONG) == [False]
        assert stats_of(cache).quarantined_bytes == ENTRY_BYTES
        pause.release()
        assert cache.flush(LONG)
        assert stats_of(cache).quarantined_bytes == 0
        cache.check_integrity()


@pytest.mark.parametrize("error", [OSError("broken"), SystemExit(), MemoryError()])
def test_exception_of_a_fetch_keeps_the_pages_until_close(error: BaseException) -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, 1, 2)
    with tier_cache(tier, clock=clock, host_pages=32) as cache:
        tier.fail("fetch", error)  # type: ignore[arg-type]
        pause = tier.pause("close")
        fetch = cache.begin_fetch([key_of(1), key_of(2)], 2)
        assert pause.started.wait(LONG)
        assert fetch.wait(LONG) == [False, False]
        assert stats_of(cache).quarantined_bytes == 2 * ENTRY_BYTES
        assert cache.stats().host_bytes == 2 * ENTRY_BYTES
        pause.release()
        assert cache.flush(LONG)
        assert (stats_of(cache).quarantined_bytes, cache.stats().host_bytes) == (0, 0)
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1), key_of(2)], 2) == [True, True]
        cache.check_integrity()


def test_other_entries_of_an_unsafe_fetch_enter_and_the_next_tier_is_asked() -> None:
    near, far = PlantedTier(), PlantedTier()
    far.name = "far"
    fill(near, 1, 2)
    fill(far, 1)
    with tier_cache(near, far, host_pages=32) as cache:
        near.return_unsafe()
        pause = near.pause("close")
        assert cache.fetch([key_of(1), key_of(2)], 2) == [True, True]
        assert is_right(cache, 1)
        assert is_right(cache, 2)
        assert stats_of(cache, 0).quarantined_bytes == ENTRY_BYTES
        near.write_late()
        assert is_right(cache, 1)
        pause.release()


def test_damaged_entry_is_a_miss_and_the_tier_stays_in_use() -> None:
    tier = PlantedTier()
    fill(tier, 1, 2)
    with tier_cache(tier) as cache:
        tier.return_damaged()
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, True]
        assert is_right(cache, 2)
        assert (stats_of(cache).damaged, stats_of(cache).is_open, tier.calls["close"]) == (1, False, 1)
        cache.check_integrity()


def test_pages_stay_in_quarantine_for_ever_if_close_raises() -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, 1)
    kept = len(tier_engine._kept_for_ever)
    with tier_cache(tier, clock=clock, host_pages=2) as cache:
        tier.return_unsafe()
        tier.fail("close", OSError("busy"))
        assert cache.fetch([key_of(1)], 2) == [False]
        assert cache.flush(LONG)
        assert stats_of(cache).quarantined_bytes == ENTRY_BYTES
        assert not cache.put(key_of(3), rows_of(3, 4), tier="host")
        assert cache.put(key_of(2), rows_of(2), tier="host")
        tier.write_late()
        assert is_right(cache, 2)
        cache.check_integrity()
    assert len(tier_engine._kept_for_ever) == kept + 1
    assert tier.write_late() == ENTRY_BYTES  # into memory that still is there


def test_close_of_the_cache_does_not_hang_with_a_tier_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vitcache.cache.lower_tiers.CLOSE_S", 0.05)
    tier = PlantedTier()
    fill(tier, 1)
    cache = tier_cache(tier)
    tier.return_unsafe()
    pause = tier.pause("close")
    cache.begin_fetch([key_of(1)], 2)
    assert pause.started.wait(LONG)
    cache.close()
    assert "was not closed within" in caplog.text
    cache.close()
    with pytest.raises(RuntimeError, match="the cache was closed"):
        cache.begin_fetch([key_of(1)], 2)
    del cache
    assert tier.write_late() == ENTRY_BYTES  # the pages still are there
    pause.release()


def test_tier_that_does_not_open_is_tried_again_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, 1)
    for nth in (1, 2, 3):
        tier.fail("open", OSError("no device"), nth)
    with caplog.at_level(logging.ERROR, "vitcache.tiers"), tier_cache(tier, clock=clock) as cache:
        assert cache.flush(LONG)
        assert stats_of(cache).is_open
        put(cache, 2)
        assert is_right(cache, 2)
        assert cache.fetch([key_of(1)], 2) == [False]
        for back_off in (1, 2):
            clock.advance(back_off)
            assert cache.fetch([key_of(1)], 2) == [False]
        assert (stats_of(cache).failures, stats_of(cache).openings) == (3, 1)
        clock.advance(4)
        assert cache.fetch([key_of(1)], 2) == [True]
        assert cache.flush(LONG)
        assert not stats_of(cache).is_open
    assert caplog.text.count("failed in open") == 1


@pytest.mark.parametrize("method", ["exists", "generation"])
def test_failure_before_the_pages_are_reserved_frees_nothing_early(method: str) -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, 1)
    tier.fail(method, OSError("broken"))
    with tier_cache(tier, clock=clock) as cache:
        assert cache.flush(LONG)
        assert cache.fetch([key_of(1)], 2) == [False]
        assert (stats_of(cache).failures, stats_of(cache).is_open, cache.stats().host_bytes) == (1, True, 0)
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1)], 2) == [True]


@pytest.mark.parametrize("method", ["claim", "store"])
def test_failing_store_keeps_its_lease_until_close_and_is_offered_again(method: str) -> None:
    tier, clock = PlantedTier(), Clock()
    with tier_cache(tier, clock=clock, device_pages=1) as cache:
        tier.fail(method, OSError("broken"))
        pause = tier.pause("close")
        assert cache.put(key_of(1), rows_of(1))
        cache.stats()
        assert pause.started.wait(LONG)
        assert (cache.stats().leased_pages, stats_of(cache).quarantined_bytes) == (1, ENTRY_BYTES)
        pause.release()
        assert cache.flush(LONG)
        assert (cache.stats().leased_pages, stats_of(cache).quarantined_bytes) == (0, 0)
        assert (stats_of(cache).store_failures, stats_of(cache).is_open) == (1, True)
        clock.advance(FIRST_BACK_OFF_S)
        cache.fetch([key_of(9)], 2)
        assert is_right(cache, 1)
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 1


def test_metrics_that_fail_open_the_breaker_and_stats_still_return() -> None:
    tier = PlantedTier()
    tier.fail("metrics", OSError("broken"))
    with tier_cache(tier) as cache:
        assert cache.flush(LONG)
        assert stats_of(cache).failures == 1
        assert stats_of(cache).own["entries"] == 0


def test_late_fetch_opens_the_breaker_until_it_ends_and_the_back_off_is_over() -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, 1, 2)
    with tier_cache(tier, clock=clock, fetch_timeout_s=5.0) as cache:
        pause = tier.pause("fetch")
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        clock.advance(5)
        assert cache.begin_fetch([key_of(2)], 2).done  # noticed without any wait
        assert (stats_of(cache).is_open, stats_of(cache).late, stats_of(cache).refused) == (True, 1, 1)
        clock.advance(1000)
        assert cache.begin_fetch([key_of(2)], 2).done
        pause.release()
        assert fetch.wait(LONG) == [True]
        assert cache.flush(LONG)
        assert cache.begin_fetch([key_of(2)], 2).done
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(2)], 2, timeout_s=LONG) == [True]
        assert cache.flush(LONG)
        assert (stats_of(cache).is_open, stats_of(cache).openings) == (False, 1)


def test_probe_is_one_fetch() -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, 1, 2)
    with tier_cache(tier, clock=clock) as cache:
        tier.fail("exists", OSError("broken"))
        cache.fetch([key_of(1)], 2)
        clock.advance(FIRST_BACK_OFF_S)
        pause = tier.pause("exists")
        probe = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        assert cache.begin_fetch([key_of(2)], 2).done
        pause.release()
        assert probe.wait(LONG) == [True]
        assert cache.flush(LONG)
        assert cache.fetch([key_of(2)], 2) == [True]


def test_parts_of_a_fetch_are_pages_of_the_host_tier() -> None:
    tier = PlantedTier()
    fill(tier, *range(6), num_rows=5)
    with tier_cache(tier, host_pages=40) as cache:
        assert cache.put(key_of(51), rows_of(51), tier="host")
        with cache.get(key_of(51)) as lease:
            pool = lease.pool.view(-1).numpy().view(np.uint8)
            tier.register(pool)
            assert cache.fetch([key_of(number) for number in range(6)], 5) == [True] * 6
        assert all(is_right(cache, number, 5) for number in range(6))


def test_tier_that_calls_the_cache_from_its_thread_does_not_hang() -> None:
    tier = PlantedTier()
    called = threading.Event()

    def call_back() -> None:
        cache.advance_epoch(weights_name="new")
        assert cache.begin_fetch([key_of(1)], 2) is not None
        called.set()

    with tier_cache(tier) as cache:
        tier._plant("exists", 1, call_back)
        assert cache.fetch([key_of(1)], 2) == [False]
        assert called.wait(LONG)
        assert cache.flush(LONG)
        cache.check_integrity()


@pytest.mark.parametrize("timeout_s", [LONG, None])
def test_tier_that_waits_for_itself_does_not_hang(timeout_s: float | None) -> None:
    tier = PlantedTier()
    found: list[object] = []

    def call_back() -> None:
        found.append(cache.flush(timeout_s))
        try:
            cache.forget(key_of(1), timeout_s=timeout_s)
        except TimeoutError as error:
            found.append(str(error))

    with tier_cache(tier) as cache:
        tier._plant("exists", 1, call_back)
        assert cache.fetch([key_of(1)], 2) == [False]
        assert found == [False, "tier 'planted' has not erased the rows before its own call returns"]
        assert cache.flush(LONG)
        assert tier.calls["erase"] == 1
