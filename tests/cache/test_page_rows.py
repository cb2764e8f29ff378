"""`page_rows`: its default, and the encodes of a cache of small items compared with a cache without pages."""

from __future__ import annotations

import inspect

import pytest
import torch

from vitcache import EmbeddingCache
from vitcache.bench.claims import bench_pages
from vitcache.bench.traffic.simulation import PAGE_ROWS
from vitcache.bench.traffic.small_items import MAX_ROWS, lru_encodes, make_small_items, total_rows


def test_default_is_16_rows_and_the_benches_use_the_same_number() -> None:
    default = inspect.signature(EmbeddingCache).parameters["page_rows"].default
    assert default == PAGE_ROWS == 16
    cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=16 * 2 * 4 * 3)
    assert cache.page_rows == 16
    assert cache.put(bytes(32), torch.zeros(17, 2))
    assert cache.stats().device_bytes == 2 * 16 * 2 * 4


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_small_items_in_pages_of_one_row_need_few_more_encodes_than_without_pages(share: float) -> None:
    trace = make_small_items(3000, 500, seed=1)
    capacity = int(share * total_rows(trace))
    least = lru_encodes(trace, capacity)
    assert len({access.key for access in trace}) < least < len(trace) * 0.9
    assert bench_pages.cache_encodes(trace, capacity, 1) <= 1.15 * least
    assert bench_pages.cache_encodes(trace, capacity, 16) > 1.15 * least  # so the bound can fail


def test_small_items_have_1_to_9_rows_and_the_first_ranks_are_the_most_frequent() -> None:
    trace = make_small_items(5000, 100, seed=2)
    assert trace == make_small_items(5000, 100, seed=2) != make_small_items(5000, 100, seed=3)
    assert {access.num_rows for access in trace} == set(range(1, MAX_ROWS + 1))
    counts = sorted(
        (sum(access.key == key for access in trace) for key in {a.key for a in trace}), reverse=True
    )
    assert counts[0] > 5 * counts[20]


def test_lru_encodes_counts_bytes_and_refuses_an_oversize_item_without_an_eviction() -> None:
    items = {access.num_rows: access for access in make_small_items(500, 100)}
    two, three, nine = items[2], items[3], items[9]
    assert lru_encodes([two, three, two, three], 5) == 2
    assert lru_encodes([two, three, two, three], 4) == 4
    assert lru_encodes([two, nine, two], 4) == 2
