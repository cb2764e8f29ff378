"""The contract of `Tier`, which each tier passes: memory, disk, shared store, and one with planted faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiers.planted_tier import PlantedTier
from tiers.scene import (
    Pages,
    aligned,
    name_of,
    random_rows,
    rows_in,
    rows_of,
    store_rows,
    transfer_of,
)
from tiers.shared_store import opened

from vitcache.tiers import DiskTier, EntryName, FetchOutcome, MemoryTier, Transfer

HIT, MISS = FetchOutcome.HIT, FetchOutcome.MISS
CAPACITY = 4 << 20
BOUNDED: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: MemoryTier(CAPACITY),
    "disk": lambda path: DiskTier(path / "tier", CAPACITY),
    "disk, buffered": lambda path: DiskTier(path / "tier", CAPACITY, direct=False),
    "planted": lambda path: PlantedTier(CAPACITY),
}


@pytest.fixture(params=[*BOUNDED, "mooncake", "mooncake, single flight"])
def tier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """An open tier, which is empty."""
    if request.param not in BOUNDED:
        tiers = request.getfixturevalue("store_tiers")
        yield from opened(tiers["single" in request.param])
        return
    made = BOUNDED[request.param](tmp_path)
    made.open()
    yield made
    made.close()


def num_entries(tier: Any, names: Sequence[EntryName]) -> int:
    """How many of these entries the tier has; it must have no other ones, if it counts them."""
    found = sum(tier.exists(names))
    assert tier.metrics().get("entries", found) == found
    return found


def fetch_rows(tier: Any, name: Any) -> np.ndarray | None:
    fetch = transfer_of(name)
    (outcome,) = tier.fetch([fetch])
    assert outcome in (HIT, MISS)
    return rows_in(fetch) if outcome is HIT else None


def test_stored_rows_are_fetched_bit_for_bit(tier: Any) -> None:
    names = [name_of(key, num_rows, 104) for key, num_rows in enumerate((0, 1, 5, 39, 40, 700))]
    assert store_rows(tier, names) == [True] * 6
    assert tier.exists(names) == [True] * 6
    for name in names:
        assert np.array_equal(fetch_rows(tier, name), rows_of(name))


@pytest.mark.parametrize("offset", [0, 64, 4096 - 1])
@pytest.mark.parametrize("page_bytes", [4096, 12288, 5000, 1 << 20])
@pytest.mark.parametrize("num_bytes", [1, 4095, 4096, 4097, 3 * 12288 + 17, (1 << 20) + 4096 + 5])
def test_rows_in_shuffled_pages_are_kept_and_memory_beside_them_is_untouched(
    tier: Any, num_bytes: int, page_bytes: int, offset: int
) -> None:
    source = Pages(num_bytes, page_bytes, offset=offset, seed=1)
    target = Pages(num_bytes, page_bytes, offset=offset, seed=2)
    rows = random_rows(num_bytes)
    source.fill(rows)
    before = source.memory.copy()
    name = name_of(1, 1, num_bytes)
    assert tier.store([Transfer(name, source.parts)]) == [True]
    assert np.array_equal(source.memory, before)
    assert tier.fetch([Transfer(name, target.parts)]) == [HIT]
    assert np.array_equal(target.rows(), rows)
    assert set(target.outside().tolist()) == {0xFF}


def test_entry_in_more_parts_than_one_system_call_takes_is_kept(tier: Any) -> None:
    name = name_of(1, 3000, 5)
    source = transfer_of(name, rows_of(name), num_parts=3000)
    fetch = transfer_of(name, num_parts=2999)
    assert tier.store([source]) == [True]
    assert tier.fetch([fetch]) == [HIT]
    assert np.array_equal(rows_in(fetch), rows_of(name))


@pytest.mark.parametrize("num_bytes", [40, 300_000])
def test_name_that_is_fetched_twice_in_one_call_is_a_hit_twice(tier: Any, num_bytes: int) -> None:
    names = [name_of(key, 1, num_bytes) for key in (1, 2)]
    assert store_rows(tier, [*names, names[0]]) == [True] * 3
    fetches = [transfer_of(name) for name in (*names, names[0], name_of(3), names[0])]
    assert tier.fetch(fetches) == [HIT, HIT, HIT, MISS, HIT]
    for at in (0, 1, 2, 4):
        assert np.array_equal(rows_in(fetches[at]), rows_of(fetches[at].name))
    assert tier.exists(names) == [True, True]


def test_partial_batch_hits_and_misses_entry_by_entry(tier: Any) -> None:
    names = [name_of(key) for key in range(80)]
    stored = names[::3]
    assert store_rows(tier, stored) == [True] * len(stored)
    fetches = [transfer_of(name) for name in names]
    assert tier.fetch(fetches) == [HIT if name in stored else MISS for name in names]
    for fetch in fetches:
        if fetch.name in stored:
            assert np.array_equal(rows_in(fetch), rows_of(fetch.name))
    assert tier.exists(names) == [name in stored for name in names]
    assert tier.fetch([]) == tier.store([]) == tier.exists([]) == tier.claim([], 1.0) == []


@pytest.mark.parametrize(
    "change",
    [
        {"num_rows": 4},
        {"num_rows": 6},
        {"row_bytes": 50},
        {"num_rows": 10, "row_bytes": 50},
        {"tenant": bytes(32)},
        {"weights": bytes(32)},
        {"key": bytes(32)},
    ],
    ids=lambda change: "-".join(change),
)
def test_name_that_differs_in_one_field_is_a_miss_and_loses_nothing(tier: Any, change: Any) -> None:
    name = name_of(1)
    store_rows(tier, [name])
    other = name._replace(**change)
    assert tier.exists([other]) == [False]
    assert fetch_rows(tier, other) is None
    assert np.array_equal(fetch_rows(tier, name), rows_of(name))
    assert store_rows(tier, [other]) == [True]
    assert np.array_equal(fetch_rows(tier, other), rows_of(other))
    assert np.array_equal(fetch_rows(tier, name), rows_of(name))


def test_second_store_of_an_entry_returns_true_and_keeps_one_entry(tier: Any) -> None:
    assert store_rows(tier, [name_of(1), name_of(1)]) == [True, True]
    assert num_entries(tier, [name_of(1)]) == 1


@pytest.mark.parametrize("tier", BOUNDED, indirect=True)
def test_entry_larger_than_the_tier_is_refused_and_evicts_nothing(tier: Any) -> None:
    store_rows(tier, [name_of(1)])
    large = name_of(2, 1, CAPACITY + 1)
    assert tier.store([Transfer(large, [aligned(CAPACITY + 1)])]) == [False]
    assert tier.exists([name_of(1), large]) == [True, False]


@pytest.mark.parametrize("tier", BOUNDED, indirect=True)
def test_entries_that_were_used_longest_ago_are_evicted(tier: Any) -> None:
    names = [name_of(key, 1, 1 << 20) for key in range(3)]
    small = name_of(9)
    store_rows(tier, [names[0]])
    store_rows(tier, [names[1]])
    assert fetch_rows(tier, names[0]) is not None
    store_rows(tier, [names[2]])
    store_rows(tier, [name_of(4, 1, 1 << 20), small])
    assert tier.exists(names) == [True, False, True]
    metrics = tier.metrics()
    assert metrics["evictions"] == 1
    assert metrics["entries"] == 4
    assert metrics["bytes"] <= CAPACITY == tier.capacity_bytes


def test_claim_of_an_entry_that_exists_is_refused(tier: Any) -> None:
    store_rows(tier, [name_of(1)])
    assert tier.claim([name_of(1), name_of(2)], 60.0) == [False, True]


def test_erase_of_a_tenant_a_key_or_both_leaves_all_other_entries(tier: Any) -> None:
    names = {
        (tenant, key, weights): name_of(key, tenant=tenant, weights=weights)
        for tenant in (1, 2)
        for key in (3, 259, 4)  # 3 and 259 have the same first byte
        for weights in (5, 6)
    }
    store_rows(tier, list(names.values()))
    assert tier.erase(tenant=names[1, 3, 5].tenant, key=names[1, 3, 5].key) == 2
    assert tier.erase(key=names[2, 259, 5].key) == 4
    assert tier.erase(tenant=names[2, 3, 5].tenant) == 4
    left = {(1, 4, 5), (1, 4, 6)}
    assert tier.exists(list(names.values())) == [place in left for place in names]
    for place, name in names.items():
        assert (fetch_rows(tier, name) is not None) == (place in left)
    assert num_entries(tier, list(names.values())) == 2
    assert tier.erase(tenant=bytes(32)) == tier.erase(key=bytes(32)) == 0
    with pytest.raises(ValueError, match="tenant and key are None"):
        tier.erase()


def test_each_revoke_begins_a_new_generation_of_its_name_alone_and_survives_close(tier: Any) -> None:
    first, second = bytes([1]) * 32, bytes([2]) * 32
    earlier = [tier.generation(first), tier.revoke(first), tier.revoke(first)]
    assert len(set(earlier)) == 3
    before = tier.generation(second)
    tier.close()
    tier.open()
    assert [tier.generation(first), tier.generation(second)] == [earlier[-1], before]
    assert tier.revoke(second) != before
    assert tier.generation(first) == earlier[-1]


def test_entries_survive_close_and_open(tier: Any) -> None:
    store_rows(tier, [name_of(1)])
    tier.close()
    tier.open()
    assert np.array_equal(fetch_rows(tier, name_of(1)), rows_of(name_of(1)))
    assert num_entries(tier, [name_of(1)]) == 1


def test_open_tier_cannot_be_opened_and_closed_tier_cannot_be_used(tier: Any) -> None:
    with pytest.raises(RuntimeError, match="open"):
        tier.open()
    tier.close()
    tier.close()
    for call in (
        lambda: tier.register(aligned(1)),
        lambda: tier.exists([name_of(1)]),
        lambda: tier.fetch([transfer_of(name_of(1))]),
        lambda: tier.store([transfer_of(name_of(1))]),
        lambda: tier.claim([name_of(1)], 1.0),
        lambda: tier.erase(key=bytes(32)),
        lambda: tier.generation(bytes(32)),
        lambda: tier.revoke(bytes(32)),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()


@pytest.mark.parametrize(
    "parts",
    [[np.zeros(499, np.uint8)], [np.zeros(125, np.float32)], [np.zeros(1000, np.uint8)[::2]], []],
    ids=["too few bytes", "floats", "a stride", "no parts"],
)
def test_parts_that_are_not_the_bytes_of_the_entry_are_refused(tier: Any, parts: Any) -> None:
    for call in (tier.fetch, tier.store):
        with pytest.raises(ValueError, match="parts"):
            call([Transfer(name_of(1), parts)])
    assert tier.exists([name_of(1)]) == [False]
