"""The native policies: the order of the policies in plain Python, and the errors of their bindings."""

from __future__ import annotations

import random
import re
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_policies import REFERENCES

from vitcache._native import LruPolicy
from vitcache.cache.policies import POLICIES, Policy

KEYS = [bytes([number]) * 32 for number in range(3)]
STEPS = 3000
COSTS = (0.0, 5e-324, 0.3, 1.0, 27.0, 1e300)

on_each = pytest.mark.parametrize("name", sorted(REFERENCES))


class Pair:
    """A native policy and its reference, which get the same calls."""

    def __init__(self, name: str, capacity: int, num_keys: int, seed: int) -> None:
        self.native: Policy = POLICIES[name](capacity)
        self.reference = REFERENCES[name](capacity)
        self.rng = random.Random(seed)
        self.keys = [self.rng.randbytes(32) for _ in range(num_keys)]
        self.present: list[bytes] = []

    def call(self, method: str, *arguments: object) -> None:
        for policy in (self.native, self.reference):
            getattr(policy, method)(*arguments)

    def insert(self, key: bytes) -> None:
        self.call("insert", key, self.rng.randint(1, 12), self.rng.choice(COSTS))
        self.present.append(key)

    def leave(self, method: str, key: bytes) -> None:
        self.present.remove(key)
        self.call(method, key)

    def step(self, most_present: int, hit_share: float) -> None:
        """Look up a random key. A hit touches it; a miss evicts a victim if necessary, and inserts it."""
        key = self.rng.choice(self.keys)
        if key not in self.present:
            if len(self.present) >= most_present:
                # Now and then the first victims are leased, and skipped.
                victims = list(self.reference.victims())
                self.leave("evict", victims[int(self.rng.random() ** 4 * len(victims))])
            self.insert(key)
        elif self.rng.random() < hit_share:
            self.call("touch", key)
        else:
            self.leave(self.rng.choice(["remove", "evict"]), key)

    def check(self) -> None:
        victims = list(self.native.victims())
        assert victims == list(self.reference.victims())
        for key in victims:
            assert self.native.is_worth_copy(key) == self.reference.is_worth_copy(key)


@on_each
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 1 << 32),
    capacity=st.sampled_from([0, 1, 3, 30, 400]),
    num_keys=st.sampled_from([3, 20, 60]),
    most_present=st.integers(1, 40),
    hit_share=st.sampled_from([0.2, 0.8, 1.0]),
)
def test_random_trace_gives_the_order_of_the_reference_at_every_step(
    name: str, seed: int, capacity: int, num_keys: int, most_present: int, hit_share: float
) -> None:
    pair = Pair(name, capacity, num_keys, seed)
    for _ in range(STEPS):
        pair.step(most_present, hit_share)
        pair.check()


@on_each
def test_long_trace_with_phases_gives_the_order_of_the_reference(name: str) -> None:
    pair = Pair(name, 100, 400, seed=5)
    every_key = pair.keys
    for phase in range(20):
        pair.keys = every_key if phase % 2 else every_key[10 * phase : 10 * phase + 60]
        for _ in range(2000):
            pair.step(100, 0.99)
        pair.check()


def calls(key: bytes) -> list[tuple[str, tuple[object, ...]]]:
    return [(method, (key,)) for method in ("touch", "remove", "evict", "is_worth_copy")]


@on_each
def test_unknown_key_raises_key_error_with_the_key(name: str) -> None:
    policy = POLICIES[name](8)
    policy.insert(KEYS[0], 1, 1.0)
    for method, arguments in calls(KEYS[1]):
        with pytest.raises(KeyError) as raised:
            getattr(policy, method)(*arguments)
        assert raised.value.args == (KEYS[1],)
    assert list(policy.victims()) == [KEYS[0]]


@on_each
@pytest.mark.parametrize("length", [0, 31, 33])
def test_key_of_another_length_raises_value_error(name: str, length: int) -> None:
    policy, key = POLICIES[name](8), bytes(length)
    for method, arguments in chain(calls(key), [("insert", (key, 1, 1.0))]):
        with pytest.raises(ValueError, match=f"key has {length} bytes, it must have 32"):
            getattr(policy, method)(*arguments)
    assert list(policy.victims()) == []


@on_each
def test_insert_refuses_a_present_key_and_an_entry_without_pages(name: str) -> None:
    policy = POLICIES[name](8)
    policy.insert(KEYS[1], 1, 1.0)
    with pytest.raises(ValueError, match=re.escape(f"key {KEYS[1].hex()} is already in the policy")):
        policy.insert(KEYS[1], 2, 1.0)
    with pytest.raises(ValueError, match="pages is 0, it must be at least 1"):
        policy.insert(KEYS[0], 0, 1.0)
    assert list(policy.victims()) == [KEYS[1]]


@on_each
def test_victims_of_a_changed_policy_raise_runtime_error(name: str) -> None:
    policy = POLICIES[name](8)
    for key in KEYS:
        policy.insert(key, 1, 1.0)
    victims = policy.victims()
    policy.remove(next(victims))
    with pytest.raises(RuntimeError, match="the policy changed during the iteration"):
        next(victims)


def test_victims_keep_their_policy_alive() -> None:
    policy = LruPolicy(8)
    for key in KEYS:
        policy.insert(key, 1, 1.0)
    victims = policy.victims()
    del policy
    assert list(victims) == KEYS
