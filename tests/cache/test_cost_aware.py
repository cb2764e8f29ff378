"""What the cost-aware policy adds to the contract of a policy."""

from __future__ import annotations

import pytest

from vitcache.cache.policies.cost_aware import LEARNED_FROM, CostAware

KEYS = [bytes([number]) * 32 for number in range(12)]


def counter(number: int) -> bytes:
    return number.to_bytes(32, "little")


def test_what_saves_the_least_per_page_goes_first() -> None:
    policy = CostAware(100)
    policy.insert(KEYS[0], 1, 27.0)
    policy.insert(KEYS[1], 20, 32.0)
    policy.insert(KEYS[2], 7, 27.0)
    assert list(policy.victims()) == [KEYS[1], KEYS[2], KEYS[0]]


def test_of_the_same_worth_the_least_recently_used_goes_first() -> None:
    policy = CostAware(100)
    for number, pages in enumerate((1, 2, 3, 4)):
        policy.insert(KEYS[number], pages, 3.0 * pages)
    assert list(policy.victims()) == KEYS[:4]
    for key in (KEYS[1], KEYS[0], KEYS[3], KEYS[2]):
        policy.touch(key)
    assert list(policy.victims()) == [KEYS[1], KEYS[0], KEYS[3], KEYS[2]]


def test_what_is_not_hit_fades_while_others_are_hit() -> None:
    policy = CostAware(100)
    policy.insert(KEYS[0], 1, 64.0)
    policy.touch(KEYS[0])
    for key in KEYS[1:5]:
        policy.insert(key, 1, 1.0)
    assert list(policy.victims())[-1] == KEYS[0]
    for _ in range(4):  # rounds of three doublings each, where 64 is six
        for key in KEYS[1:5]:
            policy.touch(key)
    assert next(policy.victims()) == KEYS[0]


def test_a_new_key_is_worth_as_much_as_others_only_where_new_keys_are_hit() -> None:
    policy = CostAware(10_000)
    policy.insert(KEYS[0], 1, 1.0)
    policy.touch(KEYS[0])
    policy.insert(KEYS[1], 1, 1.9)
    assert next(policy.victims()) == KEYS[1]
    assert not policy.is_worth_copy(KEYS[1])
    for number in range(4 * LEARNED_FROM):
        policy.insert(counter(number), 1, 100.0)
        policy.touch(counter(number))
    assert policy.is_worth_copy(KEYS[1])
    policy.insert(KEYS[2], 1, 1.9)
    victims = list(policy.victims())
    assert victims.index(KEYS[2]) > victims.index(KEYS[0])
    for number in range(4 * LEARNED_FROM):
        policy.insert(counter(10_000 + number), 1, 100.0)
    assert not policy.is_worth_copy(KEYS[2])


@pytest.mark.parametrize("cost", [0.0, 5e-324, 1.7e308])
def test_costs_may_be_anything_finite(cost: float) -> None:
    policy = CostAware(10)
    policy.insert(KEYS[0], 3, cost)
    policy.insert(KEYS[1], 3, 1.0)
    policy.touch(KEYS[0])
    policy.touch(KEYS[1])
    assert list(policy.victims()) == ([KEYS[0], KEYS[1]] if cost < 1 else [KEYS[1], KEYS[0]])


def test_a_policy_of_millions_of_hits_keeps_few_classes() -> None:
    policy = CostAware(100)
    for number in range(50):
        policy.insert(counter(number), 1 + number % 20, 30.0)
    for number in range(100_000):
        policy.touch(counter(number % 50))
    assert len(policy._classes) < 50
    assert policy._class_numbers == sorted(policy._classes)
