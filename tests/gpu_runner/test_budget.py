"""The budget of `make gpu`: the time that is left, and the texts that BUDGET may be."""

from __future__ import annotations

import pytest
from gpu_runner.budget import LEAST_S, MOST_GRACE_S, SUMMARY_S, Budget, parse_budget


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_budget_allows_a_part_until_less_than_its_time_is_left() -> None:
    clock = Clock()
    budget = Budget(600, clock=clock)
    assert budget.grace_s == MOST_GRACE_S
    assert budget.left_s == 600 - SUMMARY_S - MOST_GRACE_S
    assert budget.allows()
    clock.now += budget.left_s - LEAST_S
    assert budget.allows()
    assert not budget.allows(LEAST_S + 0.1)
    clock.now += 0.1
    assert not budget.allows()
    assert budget.used_s == pytest.approx(600 - SUMMARY_S - MOST_GRACE_S - LEAST_S + 0.1)


def test_short_budget_has_a_short_grace() -> None:
    assert Budget(20).grace_s == pytest.approx(20 / 15)
    assert Budget(3).grace_s == 1


def test_budget_counts_from_the_given_start() -> None:
    clock = Clock()
    assert Budget(60, started=90.0, clock=clock).used_s == 10


def test_run_without_a_budget_never_ends() -> None:
    budget = Budget(None)
    assert budget.allows(1e9)
    assert budget.left_s == float("inf")


@pytest.mark.parametrize("text", ["", " "])
def test_empty_budget_is_no_limit(text: str) -> None:
    assert parse_budget(text) is None


def test_budget_is_a_number_of_seconds() -> None:
    assert parse_budget("560") == 560
    assert parse_budget("0.5") == 0.5


@pytest.mark.parametrize("text", ["0", "-3", "10m", "nan", "inf"])
def test_budget_that_is_not_a_time_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(ValueError, match=f"BUDGET must be a number of seconds above 0, got '{text}'"):
        parse_budget(text)
