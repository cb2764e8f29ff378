"""One contract for every policy of eviction."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcache.cache.policies import POLICIES, Policy, make_policy

NAMES = sorted(POLICIES)
KEYS = [bytes([number]) * 32 for number in range(6)]
CAPACITY = 4000

# Pages of one entry go beyond any part of the room that a policy sets aside, costs to both ends.
pages = st.integers(1, 12)
costs = st.sampled_from([0.0, 1e-300, 1.0, 27.0, 1e300])
steps = st.lists(
    st.tuples(st.sampled_from(["insert", "touch", "remove", "evict"]), st.sampled_from(KEYS), pages, costs),
    max_size=60,
)


def counter(number: int) -> bytes:
    """A caller's own key: a number in 32 bytes, most of them zeros."""
    return number.to_bytes(32, "little")


class Cache:
    """Room for `CAPACITY` pages, made by a policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.pages: dict[bytes, int] = {}
        self.free = CAPACITY
        self.written: list[bytes] = []

    def put(self, key: bytes, pages: int = 1) -> None:
        while self.free < pages:
            victim = next(iter(self.policy.victims()))
            if self.policy.is_worth_copy(victim):
                self.written.append(victim)
            self.policy.evict(victim)
            self.free += self.pages.pop(victim)
        self.policy.insert(key, pages, float(pages))
        self.pages[key] = pages
        self.free -= pages


@pytest.fixture(params=NAMES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return make_policy(request.param, CAPACITY)


def test_a_new_policy_has_no_victims(policy: Policy) -> None:
    assert list(policy.victims()) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("capacity", [1, 8])
@settings(deadline=None)
@given(steps=steps)
def test_victims_are_exactly_the_keys_that_are_there_each_once(
    name: str, capacity: int, steps: list[tuple[str, bytes, int, float]]
) -> None:
    policy, present = make_policy(name, capacity), set()
    for action, key, pages, cost in steps:
        if action == "insert" and key not in present:
            policy.insert(key, pages, cost)
            present.add(key)
        elif action == "touch" and key in present:
            policy.touch(key)
        elif action == "remove" and key in present:
            policy.remove(key)
            present.remove(key)
        elif action == "evict" and key in present:
            assert policy.is_worth_copy(key) in (True, False)
            policy.evict(key)  # not always the first: that may be leased
            present.remove(key)
        assert sorted(policy.victims()) == sorted(present)
        assert list(policy.victims()) == list(policy.victims())


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(
    before=st.lists(st.tuples(st.sampled_from(["insert", "touch"]), st.sampled_from(KEYS[1:]), pages)),
    pages=pages,
)
def test_a_key_that_was_removed_has_left_no_trace(
    name: str, before: list[tuple[str, bytes, int]], pages: int
) -> None:
    policy, other, present = make_policy(name, 8), make_policy(name, 8), set()
    for action, key, size in before:
        if action == "insert" and key not in present:
            policy.insert(key, size, 1.0)
            policy.insert(KEYS[0], pages, 1.0)
            policy.remove(KEYS[0])
            other.insert(key, size, 1.0)
            present.add(key)
        elif action == "touch" and key in present:
            policy.touch(key)
            other.touch(key)
    for one in (policy, other):
        one.insert(KEYS[0], pages, 1.0)
    assert policy.is_worth_copy(KEYS[0]) == other.is_worth_copy(KEYS[0])
    assert list(policy.victims()) == list(other.victims())


def test_victims_can_be_looked_at_in_part(policy: Policy) -> None:
    for key in KEYS:
        policy.insert(key, 1, 1.0)
    first = next(iter(policy.victims()))
    policy.remove(first)
    assert first not in policy.victims()


def test_what_cannot_go_stays_first_and_others_go_instead(policy: Policy) -> None:
    for key in KEYS:
        policy.insert(key, 1, 1.0)
    leased, *others = policy.victims()
    for expected in others:
        victims = [key for key in policy.victims() if key != leased]
        assert victims[0] == expected
        policy.evict(expected)
    assert list(policy.victims()) == [leased]


def test_victims_may_be_evicted_the_last_first(policy: Policy) -> None:
    cache = Cache(policy)
    for number in range(CAPACITY):
        cache.put(counter(number))
        if number % 2:
            policy.touch(counter(number))
    expected = list(policy.victims())
    for key in reversed(expected[:40]):
        policy.evict(key)
    assert list(policy.victims()) == expected[40:]


def test_a_hit_saves_a_key_from_being_next(policy: Policy) -> None:
    cache = Cache(policy)
    for number in range(CAPACITY):
        cache.put(counter(number))
    first, second, *_ = policy.victims()
    policy.touch(first)
    assert next(iter(policy.victims())) == second


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"lru"}))
def test_one_pass_writes_nothing_back(name: str) -> None:
    cache = Cache(make_policy(name, CAPACITY))
    for number in range(5 * CAPACITY):
        cache.put(counter(number), 1 + number % 3)
    assert cache.written == []


@pytest.mark.parametrize("name", ["s3fifo", "cost"])
def test_one_pass_evicts_nothing_that_was_hit(name: str) -> None:
    cache = Cache(make_policy(name, CAPACITY))
    hot = [counter(number) for number in range(CAPACITY * 7 // 10)]
    for key in hot:
        cache.put(key)
    for key in hot:
        cache.policy.touch(key)
    for number in range(CAPACITY, 6 * CAPACITY):
        cache.put(counter(number), 1 + number % 3)
    assert set(hot) <= set(cache.pages)
    assert cache.written == []


@pytest.mark.parametrize("name", ["s3fifo", "cost"])
def test_what_comes_back_after_it_was_evicted_is_kept(name: str) -> None:
    cache = Cache(make_policy(name, CAPACITY))
    for number in range(CAPACITY + 20):
        cache.put(counter(number))
    cache.put(counter(0))
    assert cache.policy.is_worth_copy(counter(0))
    for number in range(1000, 1000 + 2 * CAPACITY):
        cache.put(counter(number))
    assert counter(0) in cache.pages


@pytest.mark.parametrize("name", ["random", ["lru"], None])
def test_an_unknown_policy_is_refused_and_the_known_are_listed(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"policy is {re.escape(repr(name))}, it must be one of 'lru'"):
        make_policy(name, 8)
