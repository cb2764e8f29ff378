"""Erasure and epochs: entries that were discarded, forgotten or revoked are found in no tier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import LONG, Clock, fill, is_right, key_of, put, rows_of, stats_of, tier_cache

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.testing import inspect
from vitcache.tiers.breaker import FIRST_BACK_OFF_S


def two_tiers() -> tuple[PlantedTier, PlantedTier]:
    near, far = PlantedTier(), PlantedTier()
    far.name = "far"
    return near, far


def test_discard_erases_in_every_tier_without_a_wait() -> None:
    near, far = two_tiers()
    with tier_cache(near, far) as cache:
        put(cache, 1, 2)
        pauses = [tier.pause("erase") for tier in (near, far)]
        assert cache.discard(key_of(1))
        fetch = cache.begin_fetch([key_of(1), key_of(2)], 2)
        for pause in pauses:
            pause.release()
        assert fetch.wait(LONG) == [False, True]
        assert cache.flush(LONG)
        assert [stats_of(cache, tier).erased for tier in (0, 1)] == [1, 1]


def test_discard_from_the_host_tier_leaves_the_tiers_alone() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        put(cache, 1, tier="host")
        assert cache.discard(key_of(1), tier="host")
        assert cache.fetch([key_of(1)], 2) == [True]
        assert tier.calls["erase"] == 0


def test_forget_waits_and_counts_what_left_each_place() -> None:
    near, far = two_tiers()
    fill(near, 1)
    with tier_cache(near, far) as cache:
        put(cache, 1, 2)
        assert cache.forget(key_of(1)) == 3
        assert cache.forget(key_of(1)) == 0
        assert cache.fetch([key_of(1)], 2) == [False]
        assert is_right(cache, 2)


def test_forget_tenant_leaves_the_rows_of_other_tenants() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        put(cache, 1, 2, tenant="one")
        put(cache, 3, tenant="two")
        assert cache.forget_tenant("one") == 4
        assert [key_of(number) in cache for number in (1, 2, 3)] == [False, False, True]
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1), key_of(2)], 2, tenant="one") == [False, False]
        assert cache.fetch([key_of(3)], 2, tenant="two") == [True]


FORGETS: dict[str, Callable[[EmbeddingCache], int]] = {
    "key": lambda cache: cache.forget(key_of(1)),
    "tenant": lambda cache: cache.forget_tenant(""),
}


@pytest.mark.parametrize("method", ["exists", "fetch"])
@pytest.mark.parametrize("forget", FORGETS)
def test_rows_that_are_being_fetched_are_forgotten(forget: str, method: str) -> None:
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier) as cache:
        pause = tier.pause(method)
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        results: list[int] = []
        forgetting = threading.Thread(target=lambda: results.append(FORGETS[forget](cache)))
        forgetting.start()
        pause.release()
        forgetting.join(LONG)
        assert results in ([1], [2])  # 2: the row had entered just before
        assert fetch.wait(LONG) == [False]
        assert cache.fetch([key_of(1)], 2) == [False]
        cache.check_integrity()


def test_rows_that_are_being_stored_are_forgotten() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        pause = tier.pause("store")
        assert cache.put(key_of(1), rows_of(1))
        cache.stats()
        assert pause.started.wait(LONG)
        with pytest.raises(TimeoutError, match=r"tier 'planted' has not erased the rows within 0\.01 s"):
            cache.forget(key_of(1), timeout_s=0.01)
        assert key_of(1) not in cache
        pause.release()
        assert cache.flush(LONG)
        assert cache.fetch([key_of(1)], 2) == [False]


def test_erase_that_fails_is_reported_and_repeated_and_its_rows_are_not_fetched() -> None:
    tier, clock = PlantedTier(), Clock()
    with tier_cache(tier, clock=clock) as cache:
        put(cache, 1, 2)
        tier.fail("erase", OSError("read-only"))
        with pytest.raises(RuntimeError, match="tier 'planted' could not erase the rows"):
            cache.forget(key_of(1))
        assert key_of(1) not in cache
        inspect(cache).ledger.discard(key_of(2))
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, False]  # the breaker is open
        tier.fail("erase", OSError("read-only"))
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1)], 2) == [False]  # the probe tries to erase first
        clock.advance(2 * FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, True]
        assert cache.flush(LONG)
        assert (stats_of(cache).erased, stats_of(cache).is_open) == (1, False)
        assert tier.calls["erase"] == 3


def test_erase_runs_while_the_breaker_is_open() -> None:
    tier, clock = PlantedTier(), Clock()
    with tier_cache(tier, clock=clock) as cache:
        put(cache, 1)
        tier.fail("exists", OSError("slow"))
        cache.fetch([key_of(9)], 2)
        assert stats_of(cache).is_open
        assert cache.forget(key_of(1)) == 2


CHANGES: dict[str, Callable[..., None]] = {
    "advance_epoch": EmbeddingCache.advance_epoch,
    "clear": EmbeddingCache.clear,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("new_name", [None, "new", "weights", b"weights"])
def test_rows_of_before_are_found_under_no_name(change: str, new_name: Any) -> None:
    near, far = two_tiers()
    with tier_cache(near, far) as cache:
        put(cache, 1)
        CHANGES[change](cache, weights_name=new_name)
        assert cache.fetch([key_of(1)], 2) == [False]
        put(cache, 2)
        inspect(cache).ledger.discard(key_of(2))
        assert cache.fetch([key_of(2)], 2) == [True]  # published under the new name
    for name in ("weights", "new", None):
        with tier_cache(near, far, weights_name=name) as cache:
            expected = [False, name is not None and str(name) == new_name]
            assert cache.fetch([key_of(1), key_of(2)], 2) == expected


def test_random_name_is_not_revoked() -> None:
    tier = PlantedTier()
    with tier_cache(tier, weights_name=None) as cache:
        put(cache, 1)
        cache.advance_epoch()
        assert cache.fetch([key_of(1)], 2) == [False]
    assert (tier.calls["revoke"], tier.calls["generation"]) == (0, 0)


def test_epoch_begins_at_once_with_a_tier_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vitcache.cache.lower_tiers.REVOKE_S", 0.01)
    tier = PlantedTier()
    fill(tier, 1)
    with tier_cache(tier) as cache:
        pause = tier.pause("fetch")
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        cache.advance_epoch(weights_name="weights")
        assert "has not revoked the name" in caplog.text
        assert key_of(1) not in cache
        again = cache.begin_fetch([key_of(1)], 2)
        pause.release()
        assert [fetch.wait(LONG), again.wait(LONG)] == [[False], [False]]
        cache.check_integrity()
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)], 2) == [False]


def test_name_that_could_not_be_revoked_is_not_used_until_it_is() -> None:
    tier, clock = PlantedTier(), Clock()
    with tier_cache(tier, clock=clock) as cache:
        put(cache, 1)
        tier.fail("revoke", OSError("read-only"))
        cache.advance_epoch(weights_name="weights")
        tier.fail("revoke", OSError("read-only"))
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1)], 2) == [False]
        clock.advance(2 * FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1)], 2) == [False]
        assert tier.calls["revoke"] == 3
        assert cache.flush(LONG)
        assert not stats_of(cache).is_open


def test_interrupted_change_of_the_epoch_leaves_nothing_of_before() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        put(cache, 1)
        inspect(cache).ledger.advance()  # as if an interrupt had ended `advance_epoch` here
        assert cache.fetch([key_of(1)], 2) == [False]
        put(cache, 2)
        inspect(cache).ledger.discard(key_of(2))
        assert cache.fetch([key_of(2)], 2) == [True]  # under a random name
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(2)], 2) == [False]


@pytest.mark.parametrize("name", ["", b"", 3])
def test_wrong_name_of_weights_changes_nothing(name: Any) -> None:
    with tier_cache(PlantedTier()) as cache:
        put(cache, 1)
        for change in CHANGES.values():
            with pytest.raises((ValueError, TypeError), match="weights_name"):
                change(cache, weights_name=name)
        assert is_right(cache, 1)


def test_rows_that_replaced_those_of_another_tenant_are_not_stored_as_theirs() -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        pause = tier.pause("exists")
        cache.begin_fetch([key_of(9)], 2)
        assert pause.started.wait(LONG)
        for tenant in ("one", "two"):  # equal keys: a caller may have given them
            assert cache.put(key_of(1), rows_of(1), tenant=tenant)
            cache.stats()  # hands the offer over
        pause.release()
        assert cache.flush(LONG)
        assert (stats_of(cache).stored, stats_of(cache).skipped_stores) == (1, 1)
        assert cache.forget_tenant("two") == 1 + 1
        assert tier.metrics()["entries"] == 0


@pytest.mark.parametrize("method", ["erase", "revoke"])
@pytest.mark.parametrize("fails_again", [False, True])
def test_erasure_that_failed_is_tried_again_before_the_tier_is_closed(
    method: str, fails_again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        put(cache, 1)
        for nth in range(1, 2 + fails_again):
            tier.fail(method, OSError("planted"), nth)
        if method == "erase":
            assert cache.discard(key_of(1))
        else:
            cache.advance_epoch()
        assert cache.flush(LONG)
    assert ("1 erases or changes of weights failed" in caplog.text) is fails_again
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)], 2) == [fails_again]


def test_name_given_again_while_the_tier_opens_is_of_the_next_generation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitcache.cache.lower_tiers.REVOKE_S", 0.0)
    tier = PlantedTier()
    with tier_cache(tier) as cache:
        put(cache, 1)
    pause = tier.pause("open")
    with tier_cache(tier) as cache:
        assert pause.started.wait(LONG)
        cache.advance_epoch(weights_name="weights")
        pause.release()
        assert cache.fetch([key_of(1)], 2) == [False]
        put(cache, 2)
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, True]
