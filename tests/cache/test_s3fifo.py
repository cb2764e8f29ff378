"""The policy "s3fifo", beyond the contract of all policies."""

from __future__ import annotations

from vitcache.cache import policies
from vitcache.cache.policies import Policy

KEYS = [bytes([number]) * 32 for number in range(12)]


def make_policy(capacity_pages: int, *pages: int) -> Policy:
    policy = policies.make_policy("s3fifo", capacity_pages)
    for key, size in zip(KEYS, pages, strict=False):
        policy.insert(key, size, 1.0)
    return policy


def test_s3fifo_evicts_the_small_queue_first_once_it_has_a_tenth_of_the_pages() -> None:
    policy = make_policy(30, 1, 1)
    policy.touch(KEYS[0])
    assert list(policy.victims()) == [KEYS[0], KEYS[1]]
    policy.insert(KEYS[2], 2, 1.0)
    assert list(policy.victims()) == [KEYS[1], KEYS[2], KEYS[0]]


def test_s3fifo_entry_larger_than_the_small_queue_is_evicted_first() -> None:
    policy = make_policy(30, 1, 20)
    policy.touch(KEYS[0])
    assert list(policy.victims()) == [KEYS[1], KEYS[0]]
    policy.evict(KEYS[1])
    policy.insert(KEYS[2], 2, 1.0)
    assert list(policy.victims()) == [KEYS[0], KEYS[2]]


def test_s3fifo_hits_give_a_key_at_most_three_laps() -> None:
    policy = make_policy(10, 1, 1, 1)
    for key, hits in zip(KEYS, (9, 3, 1), strict=False):
        for _ in range(hits):
            policy.touch(key)
    assert list(policy.victims()) == [KEYS[2], KEYS[0], KEYS[1]]


def test_s3fifo_skipped_leased_key_rejoins_after_the_current_lap() -> None:
    policy = make_policy(10, *[1] * 6)
    for key in KEYS[:6]:
        policy.touch(key)
    for key in KEYS[1:6]:
        policy.touch(key)
    for key in KEYS[1:4]:
        policy.evict(key)  # the first key is leased, so it is skipped
    policy.touch(KEYS[0])
    assert list(policy.victims()) == [KEYS[4], KEYS[5], KEYS[0]]


def test_s3fifo_ghost_queue_forgets_keys_beyond_the_number_of_present_keys() -> None:
    policy = make_policy(10, 1, 1, 1)
    for number in range(3, 8):
        policy.evict(KEYS[number - 3])
        policy.insert(KEYS[number], 1, 1.0)
    assert not policy.is_worth_copy(KEYS[7])
    policy.insert(KEYS[0], 1, 1.0)
    assert not policy.is_worth_copy(KEYS[0])
    policy.insert(KEYS[4], 1, 1.0)
    assert policy.is_worth_copy(KEYS[4])


def test_s3fifo_ghost_queue_is_shortened_by_a_removal_of_a_present_key() -> None:
    policy = make_policy(10, *[1] * 6)
    for key in KEYS[:3]:
        policy.evict(key)  # three ghosts, as many as present keys
    for key in KEYS[3:5]:
        policy.remove(key)
    for key in KEYS[:3]:
        policy.insert(key, 1, 1.0)
    assert [policy.is_worth_copy(key) for key in KEYS[:3]] == [False, False, True]
