"""`make_cache`: the size and the pages of the cache of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitcache import EmbeddingCache
from vitcache.adapters.sglang.model_cache import (
    FEWEST_PAGES,
    MOST_PAGE_ROWS,
    StepShape,
    make_cache,
    page_rows,
)
from vitcache.adapters.sglang.options import Options
from vitcache.cache.policies import POLICIES
from vitcache.testing import inspect

HIDDEN = 4


def test_page_rows_is_a_power_of_two_that_leaves_enough_pages() -> None:
    sizes = [page_rows(num_rows) for num_rows in range(0, 40_000, 7)]
    assert sizes == sorted(sizes)
    assert set(sizes) == {1, 2, 4, 8, MOST_PAGE_ROWS}
    for num_rows in (*range(0, 40_000, 7), 2**50):
        size = page_rows(num_rows)
        assert size == 1 or num_rows // size >= FEWEST_PAGES
        assert size == MOST_PAGE_ROWS or num_rows // (2 * size) < FEWEST_PAGES


@pytest.mark.parametrize("device_bytes", [1, 15, 16, 47, 48])
def test_tier_smaller_than_a_row_has_one_row(device_bytes: int) -> None:
    shape = StepShape(HIDDEN, 2, torch.float32, torch.device("cpu"))
    with make_cache(shape, device_bytes, Options()) as cache:
        assert cache.stats().device_capacity_bytes == HIDDEN * 3 * 4


@pytest.mark.parametrize("host_bytes", [0, 1, 100, 1 << 12])
@pytest.mark.parametrize("device_bytes", [1, 1 << 20])
def test_host_tier_smaller_than_a_page_has_one_page(device_bytes: int, host_bytes: int) -> None:
    """Options are checked before the size of a row is known: a small number must not end the engine later."""
    shape = StepShape(HIDDEN, 0, torch.float32, torch.device("cpu"))
    with make_cache(shape, device_bytes, Options(host_bytes=host_bytes)) as cache:
        page_bytes = cache.page_rows * HIDDEN * 4
        pages = max(1, host_bytes // page_bytes) if host_bytes else 0
        assert cache.stats().host_capacity_bytes == pages * page_bytes


def eviction_order(cache: EmbeddingCache) -> list[bytes]:
    """The keys of a full tier, the next victim first. Later entries cost less, and two were hit."""
    keys = [bytes([number]) * 32 for number in range(4)]
    for number, key in enumerate(keys):
        assert cache.put(key, torch.full((1, HIDDEN), float(number)), encode_ms=10.0 - number)
    for key in (keys[0], keys[0], keys[1]):
        lease = cache.get(key)
        assert lease is not None
        lease.release()
    return inspect(cache).eviction_order("device")


def test_policy_of_the_option_is_that_of_the_cache() -> None:
    shape = StepShape(HIDDEN, 0, torch.float32, torch.device("cpu"))
    tier: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "device_bytes": 64, "page_rows": 1}
    orders = set()
    for policy in POLICIES:
        with (
            make_cache(shape, 64, Options(policy=policy)) as ours,
            EmbeddingCache(HIDDEN, policy=policy, **tier) as plain,
        ):
            order = eviction_order(ours)
            assert order == eviction_order(plain)
            orders.add(tuple(order))
    assert len(orders) == len(POLICIES)
