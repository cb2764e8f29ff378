"""`get_many`: many look-ups in one step give the results, counts and order of one `get` per key."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cache_cases import KEYS, make_full, make_rows, present
from caches import make_cache

from vitcache.testing import inspect


def test_get_many_returns_a_lease_per_hit_and_none_per_miss_in_order() -> None:
    cache = make_full(3)
    found = cache.get_many([KEYS[2], KEYS[7], KEYS[0], KEYS[2]])
    assert [lease and lease.hits for lease in found] == [1, None, 1, 2]
    assert found[0] is not found[3]
    for lease, number in ((found[0], 2), (found[2], 0), (found[3], 2)):
        assert lease is not None
        assert torch.equal(lease.to_tensor(), make_rows(1, float(number)))
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.leased_pages) == (3, 1, 2)
    assert inspect(cache).eviction_order("device") == [KEYS[1], KEYS[0], KEYS[2]]
    found[0].release()  # type: ignore[union-attr]
    assert cache.stats().leased_pages == 2  # the other lease of the same key
    assert cache.get_many([]) == []


@pytest.mark.parametrize(
    ("num_rows", "hits", "left"),
    [
        (None, [0, 1, 2], [0, 1, 2]),
        (2, [0, 1, 2], [0, 1, 2]),
        (3, [], []),
        ([2, None, 3], [0, 1], [0, 1]),
        ((None, 5, None), [0, 2], [0, 2]),
    ],
)
def test_num_rows_is_one_number_or_one_per_key(
    num_rows: int | Sequence[int | None] | None, hits: list[int], left: list[int]
) -> None:
    cache = make_full(3)
    found = cache.get_many(KEYS[:3], num_rows)
    assert [number for number, lease in enumerate(found) if lease is not None] == hits
    assert present(cache) == left
    assert cache.stats().misses == 3 - len(hits)


@pytest.mark.parametrize(
    ("keys", "num_rows", "error", "match"),
    [
        ([KEYS[0], b"short"], None, ValueError, "key has 5 bytes"),
        ([KEYS[0], "text"], None, TypeError, "key must be bytes"),
        (KEYS[0], None, TypeError, "keys must be a list of bytes, got bytes"),
        (iter(KEYS), None, TypeError, "keys must be a list of bytes"),
        (KEYS[:2], [2], ValueError, "num_rows must have one number per key: expected 2, got 1"),
        (KEYS[:2], [3, -1], ValueError, "num_rows is -1, it must be at least 0"),
        (KEYS[:2], -1, ValueError, "num_rows is -1, it must be at least 0"),
        (KEYS[:2], [3, 1.5], TypeError, "num_rows must be an int"),
        (KEYS[:2], True, TypeError, "num_rows must be an int"),
    ],
)
def test_get_many_with_an_invalid_argument_looks_nothing_up(
    keys: Any, num_rows: Any, error: type[Exception], match: str
) -> None:
    cache = make_full(3)
    before, order = cache.stats(), inspect(cache).eviction_order("device")
    with pytest.raises(error, match=match):
        cache.get_many(keys, num_rows)
    assert cache.stats() == before
    assert inspect(cache).eviction_order("device") == order


def test_get_many_compares_checksums_and_drops_changed_entries() -> None:
    cache = make_cache(1, 2, checksum=True)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1, float(number)))
    cache.get(KEYS[0]).release()  # type: ignore[union-attr]  # waits for the checksum
    entry = inspect(cache).entry(KEYS[0], "host")
    entry.memory.rows[entry.pages[0] * 2].fill_(99.0)
    first, second, third = cache.get_many(KEYS[:3])
    assert first is None
    assert second is not None
    assert (second.tier, third and third.tier) == ("host", "device")
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.corruptions, stats.leased_pages) == (3, 1, 1, 2)
    assert present(cache) == [1, 2]
    cache.check_integrity()


@pytest.mark.parametrize("policy", ["lru", "s3fifo", "cost"])
def test_get_many_equals_a_loop_of_get_in_random_traces(policy: str) -> None:
    rng = random.Random(policy)
    caches = [make_cache(6, 5, policy=policy) for _ in range(2)]
    for _ in range(300):
        key, rows = rng.choice(KEYS), make_rows(rng.randint(1, 3))
        assert caches[0].put(key, rows) == caches[1].put(key, rows)
        keys = rng.choices(KEYS, k=rng.randint(0, 6))
        num_rows = [rng.choice([None, None, 2, 4]) for _ in keys]
        many = caches[0].get_many(keys, num_rows)
        loop = [caches[1].get(key, num_rows=rows) for key, rows in zip(keys, num_rows, strict=True)]
        for first, second in zip(many, loop, strict=True):
            assert (first is None) == (second is None)
            if first is not None and second is not None:
                assert (first.tier, first.pages, first.hits) == (second.tier, second.pages, second.hits)
                first.release()
                second.release()
        assert caches[0].stats() == caches[1].stats()
        for tier in ("device", "host"):
            assert inspect(caches[0]).eviction_order(tier) == inspect(caches[1]).eviction_order(tier)
    assert caches[0].stats().demotions > 0


@pytest.mark.parametrize("num_rows", [2**63 - 1, 2**63, 2**70])
def test_look_up_with_a_huge_number_of_rows_is_a_miss(num_rows: int) -> None:
    cache = make_cache(4)
    for look_up in (
        lambda: cache.get(KEYS[0], num_rows=num_rows),
        lambda: cache.get_many([KEYS[0]], num_rows)[0],
    ):
        cache.put(KEYS[0], make_rows(1))
        assert look_up() is None
        assert KEYS[0] not in cache
    assert cache.reserve(KEYS[0], num_rows) is None
    assert not cache.has_room(num_rows)
    cache.expect([1, num_rows])
    assert not cache.put(KEYS[0], make_rows(1), epoch=num_rows)
    cache.check_integrity()
