"""Policies that are written in Python: the native ledger follows the order that they give."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cache_cases import KEYS, make_rows, present
from caches import make_cache
from failure import Failure
from reference_policies import REFERENCES

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.policies import POLICIES
from vitcache.pages.lease import Lease


class Youngest:
    """Evicts the key that was inserted last; a key that was hit is not worth a copy."""

    made: list[Youngest]

    def __init__(self, capacity_pages: int) -> None:
        self.capacity_pages = capacity_pages
        self.hits: dict[bytes, int] = {}
        self.fails = False
        type(self).made.append(self)

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        if self.fails:
            raise Failure
        assert key not in self.hits
        assert min(pages, cost) > 0
        self.hits[key] = 0

    def touch(self, key: bytes) -> None:
        self.hits[key] += 1

    def remove(self, key: bytes) -> None:
        del self.hits[key]

    evict = remove

    def is_worth_copy(self, key: bytes) -> bool:
        return self.hits.get(key, 0) == 0

    def victims(self) -> Iterator[bytes]:
        return reversed(self.hits)


@pytest.fixture(autouse=True)
def youngest(monkeypatch: pytest.MonkeyPatch) -> type[Youngest]:
    Youngest.made = []
    monkeypatch.setitem(POLICIES, "youngest", Youngest)
    return Youngest


def make_filled(device_pages: int, host_pages: int = 0) -> EmbeddingCache:
    cache = make_cache(device_pages, host_pages, policy="youngest")
    Youngest.made.clear()  # the constructor makes a policy to check its name
    for number in range(device_pages):
        assert cache.put(KEYS[number], make_rows(1, float(number)))
    return cache


def test_cache_evicts_in_the_order_of_a_python_policy() -> None:
    cache = make_filled(3)
    assert cache.put(KEYS[3], make_rows(1))
    assert present(cache) == [0, 1, 3]
    assert cache.put(KEYS[4], make_rows(2))
    assert present(cache) == [0, 4]
    cache.check_integrity()


def test_each_tier_has_its_own_python_policy_and_hits_are_replayed() -> None:
    cache = make_filled(2, 2)
    for _ in range(3):
        cache.get(KEYS[1]).release()  # type: ignore[union-attr]
    assert cache.put(KEYS[2], make_rows(1))  # evicts entry 1, which was hit: it is not worth a copy
    assert cache.put(KEYS[3], make_rows(1))  # evicts entry 2, which is demoted
    assert present(cache) == [0, 2, 3]
    assert cache.stats().demotions == 1
    device, host = Youngest.made
    assert (device.capacity_pages, host.capacity_pages) == (2, 2)
    cache.expect([1])
    assert (list(device.hits), list(host.hits)) == ([KEYS[0], KEYS[3]], [KEYS[2]])


def test_new_epoch_makes_a_new_python_policy() -> None:
    cache = make_filled(2)
    cache.clear()
    assert cache.put(KEYS[5], make_rows(1))
    assert cache.put(KEYS[6], make_rows(1))
    assert cache.put(KEYS[7], make_rows(1))
    assert present(cache) == [5, 7]
    assert len(Youngest.made) == 2


def test_exception_of_a_python_policy_surfaces_and_leaves_the_cache_consistent() -> None:
    cache = make_filled(2)
    Youngest.made[0].fails = True
    with pytest.raises(Failure):
        cache.put(KEYS[2], make_rows(1))
    cache.check_integrity()
    assert cache.get(KEYS[0]) is not None
    assert cache.stats().leased_pages <= 1


def test_policy_that_raised_once_is_made_anew_with_all_entries() -> None:
    cache = make_filled(3)
    Youngest.made[0].fails = True
    with pytest.raises(Failure):
        cache.put(KEYS[3], make_rows(1))
    assert cache.put(KEYS[3], make_rows(1))
    assert len(Youngest.made) == 2
    assert len(cache) == 3
    for number in range(4, 8):
        assert cache.put(KEYS[number], make_rows(1))
    cache.check_integrity()


def test_policy_that_calls_put_of_its_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_filled(2)
    with monkeypatch.context() as patch:
        patch.setattr(Youngest, "victims", lambda policy: iter([cache.put(KEYS[5], make_rows(1))]))
        with pytest.raises(RuntimeError, match="a policy must not call its cache"):
            cache.put(KEYS[4], make_rows(1))
    cache.check_integrity()


def test_policy_that_names_unknown_keys_and_reads_the_cache_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_filled(3)
    victims = Youngest.victims

    def victims_and_unknown_keys(policy: Youngest) -> Iterator[bytes]:
        lease = cache.get(KEYS[0])
        if lease is not None:
            lease.release()
        assert len(cache) <= 3
        return iter([b"?" * 32, *victims(policy)])

    monkeypatch.setattr(Youngest, "victims", victims_and_unknown_keys)
    for number in range(3, 9):
        assert cache.put(KEYS[number], make_rows(1))
    cache.check_integrity()
    assert len(cache) == 3


@pytest.mark.parametrize("look_up", ["get", "get_many"])
def test_log_of_events_is_bounded_by_look_ups(look_up: str) -> None:
    cache = make_filled(2)
    for number in range(10_000):
        if look_up == "get":
            cache.get(KEYS[number % 2]).release()  # type: ignore[union-attr]
        else:
            for lease in cache.get_many([KEYS[number % 2]]):
                lease.release()  # type: ignore[union-attr]
    hits = sum(Youngest.made[0].hits.values())
    assert 10_000 - 4096 - 64 <= hits <= 10_000  # the others wait for the next batch


@pytest.mark.parametrize("name", sorted(REFERENCES))
@pytest.mark.parametrize("host_pages", [0, 6])
def test_python_policy_gives_the_same_cache_as_the_native_policy(
    name: str, host_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POLICIES, "reference", REFERENCES[name])
    caches = [make_cache(8, host_pages, policy=policy) for policy in (name, "reference")]
    rng = random.Random(7)
    leases: list[tuple[Lease, Lease]] = []
    keys = [bytes([number]) * 32 for number in range(24)]
    for _ in range(1500):
        key, action = rng.choice(keys), rng.random()
        results: list[Any]
        if action < 0.45:
            rows = torch.full((rng.randint(1, 6), 4), rng.random())
            results = [cache.put(key, rows, encode_ms=2.0) for cache in caches]
            assert results[0] == results[1]
        elif action < 0.85:
            results = [cache.get(key) for cache in caches]
            assert (results[0] is None) == (results[1] is None)
            if results[0] is not None:
                assert results[0].tier == results[1].tier
                leases.append((results[0], results[1]))
        elif leases:
            for lease in leases.pop(rng.randrange(len(leases))):
                lease.release()
        if len(leases) > 4:
            for lease in leases.pop(0):
                lease.release()
    assert caches[0].stats() == caches[1].stats()
    assert [key in caches[0] for key in keys] == [key in caches[1] for key in keys]
    for cache in caches:
        cache.check_integrity()
