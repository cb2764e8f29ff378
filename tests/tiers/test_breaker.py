"""The breaker of a tier: it opens on failures and lateness, waits, and lets one probe through."""

from __future__ import annotations

import pytest
from tiers.tier_cache import Clock

from vitcache.tiers.breaker import FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S, Breaker


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def test_closed_breaker_admits_everything(breaker: Breaker) -> None:
    assert [breaker.admit() for _ in range(3)] == [True] * 3
    assert not breaker.is_open


def test_failure_opens_and_after_the_back_off_one_probe_is_admitted(breaker: Breaker, clock: Clock) -> None:
    breaker.fail()
    assert (breaker.is_open, breaker.openings, breaker.admit()) == (True, 1, False)
    clock.advance(FIRST_BACK_OFF_S)
    assert breaker.may_admit
    assert [breaker.admit(), breaker.admit()] == [None, False]
    breaker.end_probe(succeeded=True)
    assert (breaker.is_open, breaker.admit()) == (False, True)


def test_back_off_doubles_with_each_failed_probe_up_to_a_limit(breaker: Breaker, clock: Clock) -> None:
    breaker.fail()
    back_off = FIRST_BACK_OFF_S
    for _ in range(7):
        clock.advance(back_off - 0.01)
        assert breaker.admit() is False
        clock.advance(0.02)
        assert breaker.admit() is None
        breaker.fail(is_probe=True)
        back_off = min(2 * back_off, LONGEST_BACK_OFF_S)
    assert back_off == LONGEST_BACK_OFF_S
    assert breaker.openings == 1


def test_back_off_is_short_again_after_a_success(breaker: Breaker, clock: Clock) -> None:
    for probe in (False, True, True):
        breaker.fail(probe)
    clock.advance(LONGEST_BACK_OFF_S)
    assert breaker.admit() is None
    breaker.end_probe(succeeded=True)
    breaker.fail()
    clock.advance(FIRST_BACK_OFF_S)
    assert breaker.admit() is None
    assert breaker.openings == 2


def test_late_call_keeps_it_open_until_it_ends_and_the_back_off_is_over(
    breaker: Breaker, clock: Clock
) -> None:
    breaker.begin_late()
    clock.advance(10 * LONGEST_BACK_OFF_S)
    assert breaker.admit() is False
    breaker.end_late()
    assert breaker.admit() is False
    clock.advance(FIRST_BACK_OFF_S)
    assert breaker.admit() is None


def test_probe_that_did_not_ask_the_tier_leaves_the_probe_to_the_next(breaker: Breaker, clock: Clock) -> None:
    breaker.fail()
    clock.advance(FIRST_BACK_OFF_S)
    assert breaker.admit() is None
    breaker.end_probe(succeeded=False)
    assert breaker.is_open
    assert breaker.admit() is None


def test_late_probe_lengthens_the_back_off(breaker: Breaker, clock: Clock) -> None:
    breaker.fail()
    clock.advance(FIRST_BACK_OFF_S)
    assert breaker.admit() is None
    breaker.begin_late(is_probe=True)
    breaker.end_late()
    clock.advance(FIRST_BACK_OFF_S)
    assert breaker.admit() is False
    clock.advance(FIRST_BACK_OFF_S)
    assert breaker.admit() is None
