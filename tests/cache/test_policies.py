"""The contract of all policies."""

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

# Some entries are larger than the pages that a policy keeps for new keys. Costs include both extremes.
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
    """A tier of `CAPACITY` pages that evicts in the order of a policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.pages: dict[bytes, int] = {}
        self.free = CAPACITY
        self.copied: list[bytes] = []

    def put(self, key: bytes, pages: int = 1) -> None:
        while self.free < pages:
            victim = next(iter(self.policy.victims()))
            if self.policy.is_worth_copy(victim):
                self.copied.append(victim)
            self.policy.evict(victim)
            self.free += self.pages.pop(victim)
        self.policy.insert(key, pages, float(pages))
        self.pages[key] = pages
        self.free -= pages


@pytest.fixture(params=NAMES)
def policy(request: pytest.FixtureRequest) -> Policy:
    return make_policy(request.param, CAPACITY)


def test_new_policy_has_no_victims(policy: Policy) -> None:
    assert list(policy.victims()) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("capacity", [1, 8])
@settings(deadline=None)
@given(steps=steps)
def test_victims_are_exactly_the_present_keys_each_once(
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
            policy.evict(key)  # any key: the first victim may be leased
            present.remove(key)
        assert sorted(policy.victims()) == sorted(present)
        assert list(policy.victims()) == list(policy.victims())


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(
    before=st.lists(st.tuples(st.sampled_from(["insert", "touch"]), st.sampled_from(KEYS[1:]), pages)),
    pages=pages,
)
def test_removed_key_leaves_no_state(name: str, before: list[tuple[str, bytes, int]], pages: int) -> None:
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
    for each in (policy, other):
        each.insert(KEYS[0], pages, 1.0)
    assert policy.is_worth_copy(KEYS[0]) == other.is_worth_copy(KEYS[0])
    assert list(policy.victims()) == list(other.victims())


def test_victims_iterator_may_be_left_unfinished(policy: Policy) -> None:
    for key in KEYS:
        policy.insert(key, 1, 1.0)
    first = next(iter(policy.victims()))
    policy.remove(first)
    assert first not in policy.victims()


def test_skipped_leased_victim_stays_first_while_other_keys_are_evicted(policy: Policy) -> None:
    for key in KEYS:
        policy.insert(key, 1, 1.0)
    leased, *unleased = policy.victims()
    for expected in unleased:
        victims = [key for key in policy.victims() if key != leased]
        assert victims[0] == expected
        policy.evict(expected)
    assert list(policy.victims()) == [leased]


def test_victims_may_be_evicted_in_reverse_order(policy: Policy) -> None:
    cache = Cache(policy)
    for number in range(CAPACITY):
        cache.put(counter(number))
        if number % 2:
            policy.touch(counter(number))
    expected = list(policy.victims())
    for key in reversed(expected[:40]):
        policy.evict(key)
    assert list(policy.victims()) == expected[40:]


def test_hit_on_the_next_victim_makes_the_second_victim_next(policy: Policy) -> None:
    cache = Cache(policy)
    for number in range(CAPACITY):
        cache.put(counter(number))
    first, second, *_ = policy.victims()
    policy.touch(first)
    assert next(iter(policy.victims())) == second


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"lru"}))
def test_single_pass_copies_no_victim_to_the_next_tier(name: str) -> None:
    cache = Cache(make_policy(name, CAPACITY))
    for number in range(5 * CAPACITY):
        cache.put(counter(number), 1 + number % 3)
    assert cache.copied == []


@pytest.mark.parametrize("name", ["s3fifo", "cost"])
def test_single_pass_evicts_no_key_that_was_hit(name: str) -> None:
    cache = Cache(make_policy(name, CAPACITY))
    hot = [counter(number) for number in range(CAPACITY * 7 // 10)]
    for key in hot:
        cache.put(key)
    for key in hot:
        cache.policy.touch(key)
    for number in range(CAPACITY, 6 * CAPACITY):
        cache.put(counter(number), 1 + number % 3)
    assert set(hot) <= set(cache.pages)
    assert cache.copied == []


@pytest.mark.parametrize("name", ["s3fifo", "cost"])
def test_key_inserted_again_after_its_eviction_is_kept(name: str) -> None:
    cache = Cache(make_policy(name, CAPACITY))
    for number in range(CAPACITY + 20):
        cache.put(counter(number))
    cache.put(counter(0))
    assert cache.policy.is_worth_copy(counter(0))
    for number in range(2 * CAPACITY, 4 * CAPACITY):
        cache.put(counter(number))
    assert counter(0) in cache.pages


@pytest.mark.parametrize("name", ["random", ["lru"], None])
def test_make_policy_unknown_name_raises_and_lists_the_known_names(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"policy is {re.escape(repr(name))}, it must be one of 'lru'"):
        make_policy(name, 8)
