"""The policy "cost", beyond the contract of all policies."""

from __future__ import annotations

import pytest
from reference_policies.cost_aware import LEARNED_FROM, CostAware

from vitcache.cache.policies import make_policy

KEYS = [bytes([number]) * 32 for number in range(12)]


def counter(number: int) -> bytes:
    return number.to_bytes(32, "little")


def test_cost_policy_evicts_the_least_cost_per_page_first() -> None:
    policy = make_policy("cost", 100)
    policy.insert(KEYS[0], 1, 27.0)
    policy.insert(KEYS[1], 20, 32.0)
    policy.insert(KEYS[2], 7, 27.0)
    assert list(policy.victims()) == [KEYS[1], KEYS[2], KEYS[0]]


def test_cost_policy_evicts_keys_of_equal_value_in_lru_order() -> None:
    policy = make_policy("cost", 100)
    for number, pages in enumerate((1, 2, 3, 4)):
        policy.insert(KEYS[number], pages, 3.0 * pages)
    assert list(policy.victims()) == KEYS[:4]
    for key in (KEYS[1], KEYS[0], KEYS[3], KEYS[2]):
        policy.touch(key)
    assert list(policy.victims()) == [KEYS[1], KEYS[0], KEYS[3], KEYS[2]]


def test_value_of_a_key_fades_while_other_keys_are_hit() -> None:
    policy = make_policy("cost", 100)
    policy.insert(KEYS[0], 1, 64.0)
    policy.touch(KEYS[0])
    for key in KEYS[1:5]:
        policy.insert(key, 1, 1.0)
    assert list(policy.victims())[-1] == KEYS[0]
    for _ in range(4):  # each round fades by three doublings; a cost of 64 is six doublings above 1
        for key in KEYS[1:5]:
            policy.touch(key)
    assert next(policy.victims()) == KEYS[0]


def test_new_key_is_valued_in_full_only_if_new_keys_are_hit() -> None:
    policy = make_policy("cost", 10_000)
    policy.insert(KEYS[0], 1, 1.0)
    policy.touch(KEYS[0])
    policy.insert(KEYS[1], 1, 1.9)
    assert next(policy.victims()) == KEYS[1]
    assert not policy.is_worth_copy(KEYS[1])
    for number in range(1, 1 + 4 * LEARNED_FROM):  # key 0 is present
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
def test_cost_policy_accepts_every_finite_cost(cost: float) -> None:
    policy = make_policy("cost", 10)
    policy.insert(KEYS[0], 3, cost)
    policy.insert(KEYS[1], 3, 1.0)
    policy.touch(KEYS[0])
    policy.touch(KEYS[1])
    assert list(policy.victims()) == ([KEYS[0], KEYS[1]] if cost < 1 else [KEYS[1], KEYS[0]])


def test_cost_policy_keeps_few_classes_after_100_000_hits() -> None:
    policy = CostAware(100)
    for number in range(50):
        policy.insert(counter(number), 1 + number % 20, 30.0)
    for number in range(100_000):
        policy.touch(counter(number % 50))
    assert len(policy._classes) < 50
    assert policy._class_numbers == sorted(policy._classes)
