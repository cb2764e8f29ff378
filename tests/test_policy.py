"""One contract for every policy of eviction, and what LRU adds to it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcache.policies.lru import Lru
from vitcache.policy import POLICIES, Policy, make_policy

KEYS = [bytes([number]) * 32 for number in range(6)]

steps = st.lists(
    st.tuples(st.sampled_from(["insert", "touch", "remove", "evict"]), st.sampled_from(KEYS)), max_size=60
)


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> Policy:
    return make_policy(request.param, 8)


def test_a_new_policy_has_no_victims(policy: Policy) -> None:
    assert list(policy.victims()) == []


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(deadline=None)
@given(steps)
def test_victims_are_exactly_the_keys_that_are_there(name: str, steps: list[tuple[str, bytes]]) -> None:
    policy, present = make_policy(name, 8), set()
    for action, key in steps:
        if action == "insert" and key not in present:
            policy.insert(key, 1, 1.0)
            present.add(key)
        elif action == "touch" and key in present:
            policy.touch(key)
        elif action == "remove" and key in present:
            policy.remove(key)
            present.remove(key)
        elif action == "evict" and key in present:
            assert policy.is_kept(key) in (True, False)
            policy.evict(key)  # not always the first: that may be leased
            present.remove(key)
        victims = list(policy.victims())
        assert sorted(victims) == sorted(present)


def test_looking_at_victims_changes_nothing(policy: Policy) -> None:
    for key in KEYS:
        policy.insert(key, 1, 1.0)
    assert list(policy.victims()) == list(policy.victims())


def test_victims_can_be_looked_at_in_part(policy: Policy) -> None:
    for key in KEYS:
        policy.insert(key, 1, 1.0)
    first = next(policy.victims())
    policy.remove(first)
    assert first not in policy.victims()


def test_lru_gives_up_the_least_recently_inserted_or_hit_first() -> None:
    policy = Lru(8)
    for key in KEYS[:4]:
        policy.insert(key, 1, 1.0)
    policy.touch(KEYS[1])
    policy.remove(KEYS[2])
    policy.insert(KEYS[2], 1, 1.0)
    assert list(policy.victims()) == [KEYS[0], KEYS[3], KEYS[1], KEYS[2]]


@pytest.mark.parametrize("name", ["random", ["lru"], None])
def test_an_unknown_policy_is_refused_and_the_known_are_listed(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"policy is {re.escape(repr(name))}, it must be one of 'lru'"):
        make_policy(name, 8)
