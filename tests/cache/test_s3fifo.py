"""What S3-FIFO adds to the contract of a policy."""

from __future__ import annotations

from vitcache.cache.policies.s3fifo import S3Fifo

KEYS = [bytes([number]) * 32 for number in range(12)]


def make(capacity_pages: int, *pages: int) -> S3Fifo:
    policy = S3Fifo(capacity_pages)
    for key, size in zip(KEYS, pages, strict=False):
        policy.insert(key, size, 1.0)
    return policy


def test_the_small_queue_goes_first_once_it_has_a_tenth_of_the_room() -> None:
    policy = make(30, 1, 1)
    policy.touch(KEYS[0])
    assert list(policy.victims()) == [KEYS[0], KEYS[1]]
    policy.insert(KEYS[2], 2, 1.0)
    assert list(policy.victims()) == [KEYS[1], KEYS[2], KEYS[0]]


def test_an_entry_larger_than_the_small_queue_fills_it_until_it_goes() -> None:
    policy = make(30, 1, 20)
    policy.touch(KEYS[0])
    assert list(policy.victims()) == [KEYS[1], KEYS[0]]
    policy.evict(KEYS[1])
    policy.insert(KEYS[2], 2, 1.0)
    assert list(policy.victims()) == [KEYS[0], KEYS[2]]


def test_hits_give_a_key_up_to_three_laps() -> None:
    policy = make(10, 1, 1, 1)
    for key, hits in zip(KEYS, (9, 3, 1), strict=False):
        for _ in range(hits):
            policy.touch(key)
    assert list(policy.victims()) == [KEYS[2], KEYS[0], KEYS[1]]


def test_one_that_was_left_behind_for_a_lease_is_not_older_than_the_lap() -> None:
    policy = make(10, *[1] * 6)
    for key in KEYS[:6]:
        policy.touch(key)
    for key in KEYS[1:6]:
        policy.touch(key)
    for key in KEYS[1:4]:
        policy.evict(key)  # the first is leased meanwhile
    policy.touch(KEYS[0])
    assert list(policy.victims()) == [KEYS[4], KEYS[5], KEYS[0]]


def test_what_left_the_small_queue_is_forgotten_after_as_many_as_are_here() -> None:
    policy = make(10, 1, 1, 1)
    for number in range(3, 8):
        policy.evict(KEYS[number - 3])
        policy.insert(KEYS[number], 1, 1.0)
    assert not policy.is_worth_copy(KEYS[7])
    policy.insert(KEYS[0], 1, 1.0)
    assert not policy.is_worth_copy(KEYS[0])
    policy.insert(KEYS[4], 1, 1.0)
    assert policy.is_worth_copy(KEYS[4])
