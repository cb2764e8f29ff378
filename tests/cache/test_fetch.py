"""`begin_fetch`: entries of a tier enter the host tier; late ones are not waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import Any

import pytest
import torch
from caches import make_cache
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import LONG, Clock, fill, is_right, key_of, put, stats_of, tier_cache, workers_of

from vitcache import Fetch
from vitcache.testing import inspect
from vitcache.tiers import MemoryTier
from vitcache.tiers.job_queue import MOST_FETCHES


def named(name: str, max_bytes: int = 1 << 20) -> PlantedTier:
    tier = PlantedTier(max_bytes)
    tier.name = name
    return tier


@pytest.mark.parametrize("checksum", [False, True])
def test_fetched_rows_are_found_in_the_host_tier(checksum: bool) -> None:
    tier = PlantedTier()
    fill(tier, 1, 2)
    with tier_cache(tier, checksum=checksum) as cache:
        assert cache.fetch([key_of(number) for number in (1, 2, 3)], 2) == [True, True, False]
        assert is_right(cache, 1)
        with cache.get(key_of(2)) as lease:
            assert lease.tier == "host"
        stats = stats_of(cache)
        assert (stats.hits, stats.misses, stats.fetched_bytes) == (2, 1, 2 * 2 * 4 * 4)
        cache.check_integrity()


def test_keys_in_the_cache_and_empty_entries_are_not_asked_for() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        put(cache, 1)
        assert cache.fetch([key_of(1), key_of(2)], [2, 0]) == [True, False]
        assert tier.calls["exists"] == 0


def test_same_key_twice_is_fetched_once() -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)] * 3, 2) == [True] * 3
        assert stats_of(cache).hits == 1


def test_entry_of_other_rows_width_tenant_or_weights_is_not_found() -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)], 3) == [False]
        assert cache.fetch([key_of(1)], 2, row_width=2) == [False]
        assert cache.fetch([key_of(1)], 2, tenant="one") == [False]
    with tier_cache(tier, weights_name="other") as cache:
        assert cache.fetch([key_of(1)], 2) == [False]
    with tier_cache(tier, weights_name=None) as cache:
        assert cache.fetch([key_of(1)], 2) == [False]
    with tier_cache(tier, dtype=torch.float16, device_pages=16, host_pages=16) as cache:
        assert cache.fetch([key_of(1)], 4) == [False]
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)], 2) == [True]


def test_narrow_rows_and_tenants_come_back() -> None:
    tier = PlantedTier()
    rows = torch.arange(10.0).reshape(5, 2)
    with tier_cache(tier) as cache:
        assert cache.put(key_of(1), rows, tenant="one")
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)], 5, row_width=2, tenant="one") == [True]
        with cache.get(key_of(1), num_rows=5, row_width=2) as lease:
            assert torch.equal(lease.to_tensor(), rows)


def test_first_tier_is_asked_first_and_the_second_for_what_it_misses() -> None:
    near, far = named("near"), named("far")
    fill(near, 1)
    fill(far, 1, 2)
    with tier_cache(near, far) as cache:
        assert cache.fetch([key_of(1), key_of(2), key_of(3)], 2) == [True, True, False]
        assert (stats_of(cache, 0).hits, stats_of(cache, 0).misses) == (1, 2)
        assert (stats_of(cache, 1).hits, stats_of(cache, 1).misses) == (1, 1)
        assert is_right(cache, 1)
        assert is_right(cache, 2)


def test_late_tier_does_not_delay_what_the_other_tier_has() -> None:
    near, far = named("near"), named("far")
    fill(near, 1)
    fill(far, 2)
    with tier_cache(near, far, fetch_timeout_s=0.05) as cache:
        pause = near.pause("fetch")
        begun = cache.begin_fetch([key_of(1), key_of(2)], 2)
        assert pause.started.wait(LONG)
        second = cache.begin_fetch([key_of(2)], 2)
        assert second.wait(LONG) == [True]
        assert is_right(cache, 2)
        assert begun.wait() == [False, True]
        assert stats_of(cache, 0).is_open
        pause.release()
        assert begun.wait(LONG) == [True, True]
        assert is_right(cache, 1)


def test_entry_of_a_late_tier_is_asked_of_the_next_tier_by_a_later_call() -> None:
    near, far = named("near"), named("far")
    fill(near, 1)
    fill(far, 1)
    with tier_cache(near, far, fetch_timeout_s=0.02) as cache:
        pause = near.pause("exists")
        assert cache.fetch([key_of(1)], 2) == [False]
        assert cache.begin_fetch([key_of(1)], 2).wait(LONG) == [True]
        assert is_right(cache, 1)
        cache.discard(key_of(1))
        pause.release()
        assert cache.flush(LONG)
        assert key_of(1) not in cache  # the first fetch has ended, and was dropped, too
        cache.check_integrity()


def test_late_tier_delays_no_later_call() -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, *range(32))
    with tier_cache(tier, clock=clock) as cache:
        pause = tier.pause("exists")
        cache.begin_fetch([key_of(1)], 2)
        clock.advance(LONG)
        keys = [key_of(number) for number in range(32)]
        times = []
        for _ in range(100):
            before = perf_counter()
            fetch = cache.begin_fetch(keys, 2)
            times.append(perf_counter() - before)
            assert fetch.done
        pause.release()
        assert sorted(times)[50] < 50e-6


def test_late_row_enters_when_it_arrives() -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier, fetch_timeout_s=0.01) as cache:
        pause = tier.pause("fetch")
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert fetch.wait() == [False]
        assert not fetch.done
        assert stats_of(cache).late == 1
        pause.release()
        assert fetch.wait(LONG) == [True]
        assert fetch.done
        assert is_right(cache, 1)


def late_put(cache: Any) -> None:
    assert cache.put(key_of(1), torch.full((2, 4), 7.0))


# A call during the fetch, and the value of the rows of the key afterwards.
CHANGES: dict[str, tuple[Callable[[Any], object], float | None]] = {
    "put": (late_put, 7.0),
    "discard": (lambda cache: cache.discard(key_of(1)), None),
    "advance_epoch": (lambda cache: inspect(cache).ledger.advance(), None),
    "clear": (lambda cache: inspect(cache).ledger.clear(), None),
}


@pytest.mark.parametrize("method", ["exists", "fetch"])
@pytest.mark.parametrize("change", CHANGES)
def test_late_row_does_not_enter_after_a_change(change: str, method: str) -> None:
    tier = PlantedTier()
    fill(tier, 1)
    act, value = CHANGES[change]
    with tier_cache(tier) as cache:
        pause = tier.pause(method)
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        act(cache)
        pause.release()
        assert fetch.wait(LONG) == [value is not None]
        lease = cache.get(key_of(1))
        assert (lease is None) == (value is None)
        if lease is not None:
            with lease:
                assert lease.to_tensor()[0, 0] == value
        cache.check_integrity()


def test_row_that_arrives_after_close_is_given_back() -> None:
    tier = PlantedTier()
    fill(tier, 1)
    cache = tier_cache(tier)
    pause = tier.pause("fetch")
    cache.begin_fetch([key_of(1)], 2)
    assert pause.started.wait(LONG)
    closing = threading.Thread(target=cache.close)
    closing.start()
    pause.release()
    closing.join(LONG)
    assert not closing.is_alive()
    with pytest.raises(RuntimeError, match="the cache was closed"):
        cache.fetch([key_of(1)], 2)


def test_second_call_joins_the_fetch_that_runs() -> None:
    tier = PlantedTier()
    fill(tier, 1, 2)
    with tier_cache(tier) as cache:
        pause = tier.pause("exists")
        first = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        second = cache.begin_fetch([key_of(1)], 2)
        third = cache.begin_fetch([key_of(1), key_of(2)], 2)
        pause.release()
        assert [first.wait(LONG), second.wait(LONG), third.wait(LONG)] == [[True], [True], [True, True]]
        assert stats_of(cache).hits == 2


def test_cancelled_fetch_is_left_out_unless_another_call_wants_it() -> None:
    tier = PlantedTier()
    fill(tier, 1, 2, 3)
    with tier_cache(tier) as cache:
        pause = tier.pause("exists")
        blocker = cache.begin_fetch([key_of(3)], 2)
        assert pause.started.wait(LONG)
        first = cache.begin_fetch([key_of(1), key_of(2)], 2)
        second = cache.begin_fetch([key_of(2)], 2)
        first.cancel()
        first.cancel()
        assert not first.done  # the worker has not left it out yet
        assert first.wait(LONG) == [False, False]
        third = cache.begin_fetch([key_of(1)], 2)
        third.cancel()
        pause.release()
        assert second.wait(LONG) == [True]
        assert blocker.wait(LONG) == [True]
        assert first.done
        assert cache.fetch([key_of(1)], 2) == [True]
        assert stats_of(cache).hits == 3


def test_queue_of_fetches_is_bounded_and_counts_what_it_refuses() -> None:
    tier = PlantedTier()
    fill(tier, *range(MOST_FETCHES + 5))
    with tier_cache(tier, host_pages=128) as cache:
        pause = tier.pause("exists")
        fetches = [cache.begin_fetch([key_of(0)], 2)]
        assert pause.started.wait(LONG)
        fetches += [cache.begin_fetch([key_of(number)], 2) for number in range(1, MOST_FETCHES + 5)]
        assert stats_of(cache).refused == 4
        assert [fetch.done for fetch in fetches[-4:]] == [True] * 4
        pause.release()
        assert [fetch.wait(LONG) for fetch in fetches] == [[True]] * (MOST_FETCHES + 1) + [[False]] * 4


def test_large_fetch_reserves_a_part_of_the_host_tier_at_a_time() -> None:
    tier = PlantedTier()
    fill(tier, *range(32))
    with tier_cache(tier, host_pages=16) as cache:
        put(cache, 100)
        for number in range(14):
            assert cache.put(key_of(200 + number), torch.ones(2, 4), tier="host")
        pause = tier.pause("fetch")
        fetch = cache.begin_fetch([key_of(number) for number in range(32)], 2)
        assert pause.started.wait(LONG)
        assert sum(key_of(200 + number) in cache for number in range(14)) >= 12
        pause.release()
        fetch.wait(LONG)
        cache.check_integrity()


def test_entry_that_the_host_tier_has_no_room_for_is_counted() -> None:
    tier = PlantedTier()
    fill(tier, 1, num_rows=20)
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)], 20) == [False]
        assert (stats_of(cache).not_admitted, stats_of(cache).failures) == (1, 0)


def test_host_pages_that_are_leased_are_not_written() -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier, host_pages=1) as cache:
        assert cache.put(key_of(2), torch.full((2, 4), 2.0), tier="host")
        with cache.get(key_of(2)) as lease:
            assert cache.fetch([key_of(1)], 2) == [False]
            assert lease.to_tensor()[0, 0] == 2
        assert cache.fetch([key_of(1)], 2) == [True]


def test_open_breaker_answers_at_once() -> None:
    tier, clock = PlantedTier(), Clock()
    fill(tier, *range(8))
    with tier_cache(tier, clock=clock) as cache:
        tier.fail("exists", OSError("unplugged"))
        assert cache.fetch([key_of(0)], 2) == [False]
        assert stats_of(cache).is_open
        keys = [key_of(number) for number in range(8)]
        times = []
        for _ in range(200):
            before = perf_counter()
            fetch = cache.begin_fetch(keys, 2)
            times.append(perf_counter() - before)
            assert fetch.done
        assert sorted(times)[100] < 50e-6
        assert stats_of(cache).refused == 1600
        clock.advance(1)
        assert cache.fetch(keys, 2) == [True] * 8
        assert cache.flush(LONG)
        assert not stats_of(cache).is_open


def test_wait_returns_at_the_deadline() -> None:
    tier = PlantedTier()
    fill(tier, 1)
    past = []
    with tier_cache(tier, fetch_timeout_s=0.02) as cache:
        for _ in range(9):
            cache._lower._runners[0].breaker.is_open = False  # type: ignore[union-attr]
            pause = tier.pause("exists")
            begin = monotonic()
            fetch = cache.begin_fetch([key_of(1)], 2)
            assert fetch.wait() == [False]
            past.append(monotonic() - begin - 0.02)
            pause.release()
            fetch.wait(LONG)
            cache.discard(key_of(1))
            cache.flush(LONG)
            put(cache, 1)
            inspect(cache).ledger.discard(key_of(1))
    assert min(past) >= 0
    assert sorted(past)[4] < 1e-3, past  # the median, because other processes delay single waits


def test_cache_without_tiers_fetches_nothing() -> None:
    with make_cache() as cache:
        cache.put(key_of(1), torch.ones(2, 4))
        fetch = cache.begin_fetch([key_of(1), key_of(2)], 2)
        assert isinstance(fetch, Fetch)
        assert (fetch.done, fetch.wait()) == (True, [True, False])
        assert cache.flush()
        assert cache.stats().tiers == ()


def test_worker_thread_alone_calls_the_tier() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        put(cache, 1)
        cache.fetch([key_of(2)], 2)
        cache.forget(key_of(1))
        cache.advance_epoch(weights_name="new")
        cache.stats()
        [worker] = workers_of(cache)
        assert tier.threads == {worker._thread.ident}
    assert tier.calls["close"] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (([b"short"], 1), ValueError, "must have 32"),
        (([key_of(1)], None), TypeError, "num_rows must be an int"),
        (([key_of(1)], [None]), TypeError, "num_rows must be an int"),
        (([key_of(1)], [1, 2]), ValueError, "one number per key"),
        (([key_of(1)], -1), ValueError, "at least 0"),
        ((key_of(1), 1), TypeError, "keys must be a list"),
    ],
)
def test_wrong_arguments_are_refused(arguments: Any, error: type[Exception], match: str) -> None:
    with make_cache() as cache, pytest.raises(error, match=match):
        cache.begin_fetch(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"host_bytes": 0}, ValueError, "tiers need a host tier"),
        ({"tiers": 3}, TypeError, "tiers must be a list"),
        ({"tiers": [MemoryTier]}, TypeError, "not a tier"),
        ({"tiers": [object()]}, TypeError, "it has no method open"),
        ({"tiers": [MemoryTier(1), MemoryTier(1)]}, ValueError, "with the name 'memory'"),
        ({"weights_name": ""}, ValueError, "at least 1 character"),
        ({"weights_name": 3}, TypeError, "weights_name must be"),
        ({"write_back": None}, TypeError, "must be a WriteBack"),
        ({"fetch_timeout_s": None}, TypeError, "must be a number of seconds"),
        ({"fetch_timeout_s": -1}, ValueError, "at least 0"),
    ],
)
def test_wrong_options_are_refused(options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make_cache(4, 4, **({"tiers": [MemoryTier(1 << 20)]} | options))
