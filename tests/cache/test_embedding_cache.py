"""The embedding cache: `put`, `get`, replacement, eviction and budget."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, WIDTH, make_rows, present, read
from caches import make_cache
from pairwise import pairwise
from placement_cases import FLOAT_DTYPES
from stream_model import StreamModel

from vitcache.cache import embedding_cache
from vitcache.pages import reservation
from vitcache.testing import inspect


@pairwise(num_rows=[0, 1, 2, 3, 5, 8], dtype=FLOAT_DTYPES, row_dtype=FLOAT_DTYPES)
def test_get_returns_rows_cast_to_the_cache_dtype(
    num_rows: int, dtype: torch.dtype, row_dtype: torch.dtype
) -> None:
    cache = make_cache(4, dtype=dtype)
    rows = torch.randn(num_rows, WIDTH).to(row_dtype)
    assert cache.put(KEYS[0], rows)
    found = read(cache, KEYS[0])
    assert found.dtype == dtype
    assert torch.equal(found, rows.to(dtype))


def test_put_checks_its_key_and_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def record_calls(module: ModuleType, name: str) -> None:
        check = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments: checked.append(name) or check(*arguments))

    for module in (embedding_cache, reservation):
        record_calls(module, "check_rows")
    record_calls(embedding_cache, "check_key")
    assert make_cache(4).put(KEYS[0], make_rows(2))
    assert sorted(checked) == ["check_key", "check_rows"]


def test_entry_shares_no_memory_with_its_source_or_its_copies() -> None:
    cache = make_cache(4)
    batch = make_rows(6)
    expected = batch[3:9].clone()
    cache.put(KEYS[0], batch[3:9])
    batch.fill_(float("nan"))
    found = read(cache, KEYS[0])
    assert torch.equal(found, expected)
    found.fill_(float("nan"))
    assert torch.equal(read(cache, KEYS[0]), expected)


def test_put_copies_strided_rows_and_rows_with_gradients_by_value() -> None:
    cache = make_cache(4)
    for rows in (
        torch.randn(WIDTH, 6).t(),
        torch.randn(1, WIDTH).expand(6, WIDTH),
        torch.randn(12, 8)[::2, ::2],
    ):
        assert cache.put(KEYS[0], rows)
        assert torch.equal(read(cache, KEYS[0]), rows)
    rows = torch.randn(6, WIDTH, requires_grad=True) * 2
    assert cache.put(KEYS[0], rows)
    found = read(cache, KEYS[0])
    assert not found.requires_grad
    assert torch.equal(found, rows)


def test_cache_works_inside_and_outside_of_inference_mode() -> None:
    with torch.inference_mode():
        cache = make_cache(4)
        cache.put(KEYS[0], make_rows(1, 1.0))
    cache.put(KEYS[1], make_rows(1, 2.0))
    with torch.inference_mode():
        rows = make_rows(1, 3.0)
        assert torch.equal(read(cache, KEYS[1]), make_rows(1, 2.0))
    cache.put(KEYS[2], rows)
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 1.0))
    assert torch.equal(read(cache, KEYS[2]), make_rows(1, 3.0))


def test_get_missing_key_counts_a_miss_and_contains_counts_nothing() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(1))
    assert cache.get(KEYS[1]) is None
    assert KEYS[0] in cache
    assert KEYS[1] not in cache
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (0, 1)


def test_contains_does_not_change_the_order_of_eviction() -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(1))
    assert KEYS[0] in cache
    cache.put(KEYS[2], make_rows(1))
    assert present(cache) == [1, 2]


def test_get_unexpected_number_of_rows_is_a_miss_and_drops_the_entry() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(2))
    with cache.get(KEYS[0], num_rows=4) as lease:
        assert cache.get(KEYS[0], num_rows=3) is None
        assert KEYS[0] not in cache
        assert torch.equal(lease.to_tensor(), make_rows(2))
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.evictions, stats.device_bytes) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("num_rows", "error", "match"),
    [
        ("3", TypeError, "num_rows must be an int, got '3' of type str"),
        (3.5, TypeError, "num_rows must be an int, got 3.5 of type float"),
        (True, TypeError, "num_rows must be an int, got True of type bool"),
        ([3], TypeError, r"num_rows must be an int, got \[3\] of type list"),
        (-1, ValueError, "num_rows is -1, it must be at least 0"),
    ],
)
def test_get_invalid_num_rows_raises_and_drops_nothing(
    num_rows: Any, error: type[Exception], match: str
) -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(2))
    before = cache.stats()
    with inspect(cache).drain_lock, pytest.raises(error, match=match):  # a call that drained would block here
        cache.get(KEYS[0], num_rows=num_rows)
    assert cache.stats() == before
    assert torch.equal(read(cache, KEYS[0]), make_rows(2))


def test_get_accepts_any_index_type_as_num_rows() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(2))
    with cache.get(KEYS[0], num_rows=torch.tensor(4)) as lease:
        assert lease.num_rows == 4


@pytest.mark.parametrize(
    ("device_bytes", "pages"), [(PAGE_BYTES, 1), (2 * PAGE_BYTES - 1, 1), (5 * PAGE_BYTES, 5)]
)
def test_capacity_is_the_whole_pages_of_the_budget_and_is_not_exceeded(device_bytes: int, pages: int) -> None:
    cache = make_cache(1, device_bytes=device_bytes, host_bytes=device_bytes)
    assert cache.stats().device_capacity_bytes == pages * PAGE_BYTES
    assert cache.stats().host_capacity_bytes == pages * PAGE_BYTES
    for number in range(pages):
        cache.put(KEYS[number], make_rows(1))
    assert present(cache) == list(range(pages))
    assert cache.stats().device_bytes == pages * PAGE_BYTES
    assert cache.stats().demotions == 0
    cache.put(KEYS[9], make_rows(1))
    assert cache.stats().device_bytes == pages * PAGE_BYTES
    assert (cache.stats().demotions, cache.stats().host_bytes) == (1, PAGE_BYTES)


def test_put_evicts_the_least_recently_used_and_no_more_than_needed() -> None:
    cache = make_cache(4)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1))
    cache.get(KEYS[0]).release()
    cache.put(KEYS[4], make_rows(2))
    assert present(cache) == [0, 3, 4]


def test_put_keeps_a_small_entry_if_a_large_victim_suffices() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(3))
    cache.put(KEYS[2], make_rows(2))
    assert present(cache) == [0, 2]


def test_empty_entry_occupies_one_page_and_is_evicted_in_order() -> None:
    cache = make_cache(2, 1)
    for key in KEYS[:4]:
        assert cache.put(key, torch.empty(0, WIDTH))
    assert present(cache) == [1, 2, 3]
    assert read(cache, KEYS[1]).shape == (0, WIDTH)
    stats = cache.stats()
    assert (stats.evictions, stats.device_bytes, stats.host_bytes) == (1, 2 * PAGE_BYTES, PAGE_BYTES)
    assert cache.put(KEYS[4], make_rows(2))
    assert present(cache) == [3, 4]
    cache.check_integrity()


def test_put_replaces_the_entry_and_reuses_its_pages_first() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(3))
    cache.put(KEYS[1], make_rows(3, 7.0))
    assert present(cache) == [0, 1]
    assert torch.equal(read(cache, KEYS[1]), make_rows(3, 7.0))
    cache.put(KEYS[0], make_rows(4, 9.0))
    assert present(cache) == [0]
    assert torch.equal(read(cache, KEYS[0]), make_rows(4, 9.0))


def test_put_over_a_leased_entry_leaves_the_leased_rows_unchanged() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(2))
    old = cache.get(KEYS[0])
    cache.put(KEYS[0], make_rows(2, 7.0))
    new = cache.get(KEYS[0])
    assert torch.equal(old.to_tensor(), make_rows(2))
    assert torch.equal(new.to_tensor(), make_rows(2, 7.0))
    assert cache.stats().device_bytes == 4 * PAGE_BYTES
    old.release()
    assert cache.stats().device_bytes == 2 * PAGE_BYTES
    cache.check_integrity()


def test_leased_entry_is_never_evicted() -> None:
    cache = make_cache(3)
    cache.put(KEYS[0], make_rows(1, 5.0))
    lease = cache.get(KEYS[0])
    for number in range(1, 10):
        assert cache.put(KEYS[number], make_rows(2))
        assert torch.equal(lease.to_tensor(), make_rows(1, 5.0))
    assert present(cache) == [0, 9]


@pytest.mark.parametrize("look_up", ["get", "get_many"])
def test_get_processes_released_leases_in_batches(look_up: str) -> None:
    model = StreamModel()
    cache = model.make_cache(1)
    cache.put(KEYS[0], torch.zeros(1, 2))
    for _ in range(1000):
        [lease] = cache.get_many([KEYS[0]]) if look_up == "get_many" else [cache.get(KEYS[0])]
        assert lease is not None
        lease.use()
        lease.release()
    assert 0 < inspect(cache).num_pending_releases <= 64
    cache.stats()
    assert inspect(cache).num_pending_releases == 0


def test_release_that_no_stream_has_read_unpins_at_once() -> None:
    cache = make_cache(1)
    cache.put(KEYS[0], make_rows(1))
    with cache.get(KEYS[0]) as lease:  # type: ignore[union-attr]
        lease.use()
        assert inspect(cache).device_pool.leased_pages == 1
    assert (inspect(cache).num_pending_releases, inspect(cache).device_pool.leased_pages) == (0, 0)
