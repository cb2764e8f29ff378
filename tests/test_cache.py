"""The embedding cache: what it admits, keeps, gives up and refuses, alone and under many threads."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcache.cache import EmbeddingCache
from vitcache.errors import CudaError
from vitcache.pages import PagePool

PAGE_ROWS, WIDTH = 2, 4
PAGE_BYTES = PAGE_ROWS * WIDTH * 4
KEYS = [bytes([number]) * 32 for number in range(10)]


class Failure(Exception):
    pass


def make_cache(device_pages: int, host_pages: int = 0, **options: Any) -> EmbeddingCache:
    arguments = {
        "dtype": torch.float32,
        "device": "cpu",
        "device_bytes": device_pages * PAGE_BYTES,
        "host_bytes": host_pages * PAGE_BYTES,
        "page_rows": PAGE_ROWS,
    }
    return EmbeddingCache(WIDTH, **(arguments | options))


def make_rows(pages: int, value: float = 0.0) -> Tensor:
    return torch.arange(pages * PAGE_ROWS * WIDTH).view(-1, WIDTH) / 256 + value


def present(cache: EmbeddingCache) -> list[int]:
    return [number for number, key in enumerate(KEYS) if key in cache]


def read(cache: EmbeddingCache, key: bytes) -> Tensor:
    with cache.get(key) as lease:
        return lease.to_tensor()


# Admission and look-up


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_come_back_as_a_cast_to_the_dtype(
    num_rows: int, dtype: torch.dtype, row_dtype: torch.dtype
) -> None:
    cache = make_cache(4, dtype=dtype)
    rows = torch.randn(num_rows, WIDTH).to(row_dtype)
    assert cache.put(KEYS[0], rows)
    found = read(cache, KEYS[0])
    assert found.dtype == dtype
    assert torch.equal(found, rows.to(dtype))


def test_an_entry_owns_its_bytes() -> None:
    cache = make_cache(4)
    batch = make_rows(6)
    expected = batch[3:9].clone()
    cache.put(KEYS[0], batch[3:9])
    batch.fill_(float("nan"))
    found = read(cache, KEYS[0])
    assert torch.equal(found, expected)
    found.fill_(float("nan"))
    assert torch.equal(read(cache, KEYS[0]), expected)


def test_rows_of_any_strides_and_with_gradients_are_copied_by_value() -> None:
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


def test_inference_mode_makes_no_difference() -> None:
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


def test_a_missing_key_is_none_and_looking_for_it_with_in_counts_nothing() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(1))
    assert cache.get(KEYS[1]) is None
    assert KEYS[0] in cache
    assert KEYS[1] not in cache
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (0, 1)


def test_in_does_not_count_as_a_use() -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(1))
    assert KEYS[0] in cache
    cache.put(KEYS[2], make_rows(1))
    assert present(cache) == [1, 2]


def test_an_entry_of_another_length_than_expected_is_dropped_and_is_a_miss() -> None:
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
        ("3", TypeError, "num_rows must be an int, it is '3' of type str"),
        (3.5, TypeError, "num_rows must be an int, it is 3.5 of type float"),
        (True, TypeError, "num_rows must be an int, it is True of type bool"),
        ([3], TypeError, r"num_rows must be an int, it is \[3\] of type list"),
        (-1, ValueError, "num_rows is -1, it must be at least 0"),
    ],
)
def test_a_wrong_number_of_rows_is_an_error_and_drops_nothing(
    num_rows: Any, error: type[Exception], match: str
) -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(2))
    before = cache.stats()
    with cache._lock, pytest.raises(error, match=match):  # it takes no lock
        cache.get(KEYS[0], num_rows=num_rows)
    assert cache.stats() == before
    assert torch.equal(read(cache, KEYS[0]), make_rows(2))


def test_a_number_of_rows_may_be_anything_that_is_an_index() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(2))
    with cache.get(KEYS[0], num_rows=torch.tensor(4)) as lease:
        assert lease.num_rows == 4


# Budget and eviction


@pytest.mark.parametrize(
    ("device_bytes", "pages"), [(PAGE_BYTES, 1), (2 * PAGE_BYTES - 1, 1), (5 * PAGE_BYTES, 5)]
)
def test_the_budget_is_exact(device_bytes: int, pages: int) -> None:
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


def test_the_least_recently_used_go_first_and_no_more_than_needed() -> None:
    cache = make_cache(4)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1))
    cache.get(KEYS[0]).release()
    cache.put(KEYS[4], make_rows(2))
    assert present(cache) == [0, 3, 4]


def test_a_small_entry_is_spared_where_a_large_one_must_go_anyway() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(3))
    cache.put(KEYS[2], make_rows(2))
    assert present(cache) == [0, 2]


def test_entries_of_no_rows_take_a_page_each_and_make_room_like_any_other() -> None:
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


def test_a_put_replaces_what_is_there_and_reuses_its_pages_first() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(3))
    cache.put(KEYS[1], make_rows(3, 7.0))
    assert present(cache) == [0, 1]
    assert torch.equal(read(cache, KEYS[1]), make_rows(3, 7.0))
    cache.put(KEYS[0], make_rows(4, 9.0))
    assert present(cache) == [0]
    assert torch.equal(read(cache, KEYS[0]), make_rows(4, 9.0))


def test_replacing_a_leased_entry_leaves_the_leased_rows_alone() -> None:
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


def test_an_entry_in_use_is_never_evicted() -> None:
    cache = make_cache(3)
    cache.put(KEYS[0], make_rows(1, 5.0))
    lease = cache.get(KEYS[0])
    for number in range(1, 10):
        assert cache.put(KEYS[number], make_rows(2))
        assert torch.equal(lease.to_tensor(), make_rows(1, 5.0))
    assert present(cache) == [0, 9]


# Refusals


def test_an_oversize_put_is_refused_and_evicts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(2, 8)
    cache.put(KEYS[0], make_rows(1, 1.0))
    cache.put(KEYS[1], make_rows(1, 2.0))
    assert cache.put(KEYS[0], make_rows(3)) is False
    assert present(cache) == [0, 1]
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 1.0))
    stats = cache.stats()
    assert (stats.rejections, stats.evictions, stats.demotions) == (1, 0, 0)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("vitcache.cache", logging.WARNING)
    assert record.message == (
        "put of 6 rows refused: they take 96 bytes, the device tier has 64, 64 of them to be had; "
        "raise device_bytes"
    )


def test_a_put_that_only_leases_keep_out_is_refused_and_evicts_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = make_cache(4)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1))
    leases = [cache.get(KEYS[number]) for number in (1, 3)]
    assert cache.put(KEYS[5], make_rows(3)) is False
    assert present(cache) == [0, 1, 2, 3]
    assert "they take 96 bytes, the device tier has 128, 64 of them to be had; " in caplog.text
    assert "raise device_bytes or release leases" in caplog.text
    leases[0].release()
    assert cache.put(KEYS[5], make_rows(3)) is True
    assert present(cache) == [3, 5]
    assert cache.stats().rejections == 1


@pytest.mark.parametrize(
    ("key", "rows", "error", "match"),
    [
        ("a" * 32, make_rows(1), TypeError, "key must be bytes, it is str"),
        (bytearray(32), make_rows(1), TypeError, "key must be bytes, it is bytearray"),
        (bytes(31), make_rows(1), ValueError, "key is of 31 bytes, it must be of 32"),
        (KEYS[1], [[0.0] * WIDTH], TypeError, "rows must be a tensor, it is list"),
        (KEYS[1], torch.zeros(2, WIDTH + 1), ValueError, r"shape \(2, 5\), it must be \(num_rows, 4\)"),
        (KEYS[1], torch.zeros(WIDTH), ValueError, r"shape \(4,\), it must be \(num_rows, 4\)"),
        (KEYS[1], torch.zeros(1, 2, WIDTH), ValueError, r"shape \(1, 2, 4\), it must be \(num_rows, 4\)"),
        (KEYS[1], torch.zeros(2, WIDTH, dtype=torch.float64), TypeError, "torch.float64 on cpu, it must be"),
        (KEYS[1], torch.zeros(2, WIDTH, dtype=torch.int32), TypeError, "torch.int32 on cpu, it must be"),
        (KEYS[1], torch.zeros(2, WIDTH, device="meta"), TypeError, "torch.float32 on meta, it must be"),
        (KEYS[1], torch.zeros(2, WIDTH).to_sparse(), TypeError, "torch.sparse_coo tensor of"),
    ],
)
def test_a_wrong_put_is_an_error_and_changes_nothing(
    key: Any, rows: Any, error: type[Exception], match: str
) -> None:
    cache = make_cache(1)
    cache.put(KEYS[0], make_rows(1))
    before = cache.stats()
    with pytest.raises(error, match=match):
        cache.put(key, rows)
    assert cache.stats() == before
    assert torch.equal(read(cache, KEYS[0]), make_rows(1))


@pytest.mark.parametrize("look_up", [EmbeddingCache.get, EmbeddingCache.__contains__])
def test_a_wrong_key_is_an_error_in_every_look_up(look_up: Callable[[EmbeddingCache, Any], object]) -> None:
    cache = make_cache(1)
    with pytest.raises(TypeError, match="key must be bytes, it is int"):
        look_up(cache, 1)
    with pytest.raises(ValueError, match="key is of 33 bytes, it must be of 32"):
        look_up(cache, bytes(33))
    assert cache.stats().misses == 0


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"device_bytes": PAGE_BYTES - 1},
            ValueError,
            "device_bytes is 31, one page of 2 rows takes 32 bytes",
        ),
        ({"device_bytes": 0}, ValueError, "device_bytes is 0, one page of 2 rows takes 32 bytes"),
        ({"host_bytes": PAGE_BYTES - 1}, ValueError, "host_bytes is 31, one page of 2 rows takes 32 bytes"),
        ({"host_bytes": -1}, ValueError, "host_bytes is -1, it must be at least 0"),
        ({"device_bytes": 1e9}, TypeError, r"device_bytes must be an int, it is 1000000000.0 of type float"),
        ({"page_rows": 0}, ValueError, "page_rows is 0, it must be at least 1"),
        ({"page_rows": True}, TypeError, "page_rows must be an int"),
        ({"dtype": torch.float64}, TypeError, "dtype is torch.float64, it must be one of torch.float32"),
        ({"policy": "mru", "device_bytes": 1 << 60}, ValueError, "policy is 'mru', it must be one of 'lru'"),
        ({"policy": ["lru"]}, ValueError, r"policy is \['lru'\], it must be one of 'lru'"),
        ({"device": "meta"}, ValueError, "device is meta, it must be the CPU or a CUDA device"),
        ({"device": "gpu"}, ValueError, "device is 'gpu', it must be the CPU or a CUDA device"),
        ({"device": "cuda:x"}, ValueError, "device is 'cuda:x', it must be the CPU or a CUDA device"),
    ],
)
def test_a_wrong_argument_is_an_error(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make_cache(1, **options)


def test_a_wrong_row_width_is_an_error() -> None:
    with pytest.raises(ValueError, match="row_width is 0, it must be at least 1"):
        EmbeddingCache(0, device_bytes=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_device_is_the_cpu_and_asking_for_cuda_an_error() -> None:
    assert make_cache(1, device=None).device == torch.device("cpu")
    with pytest.raises(CudaError, match="device is cuda, but torch finds no CUDA device"):
        make_cache(1, device="cuda")


# The host tier


def test_what_makes_room_goes_to_the_host_tier_and_is_read_from_there() -> None:
    cache = make_cache(3, 3)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1, float(number)))
    assert present(cache) == [0, 1, 2, 3]
    with cache.get(KEYS[0]) as lease:
        assert lease.pool is not cache.get(KEYS[1]).pool
        assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
    stats = cache.stats()
    assert (stats.demotions, stats.evictions, stats.host_bytes) == (1, 0, PAGE_BYTES)


def test_the_host_tier_gives_up_its_least_recently_used() -> None:
    cache = make_cache(1, 2)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1, float(number)))
    cache.get(KEYS[0]).release()
    cache.put(KEYS[3], make_rows(1, 3.0))
    assert present(cache) == [0, 2, 3]
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 0.0))


def test_a_victim_that_the_host_tier_cannot_hold_leaves_and_evicts_nothing_there() -> None:
    cache = make_cache(3, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(3, 1.0))  # 0 goes to the host tier
    cache.put(KEYS[2], make_rows(1, 2.0))  # 1 is larger than it
    assert present(cache) == [0, 2]


def test_leased_host_entries_stay_and_the_victim_leaves() -> None:
    cache = make_cache(1, 1)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))
    with cache.get(KEYS[0]) as lease:
        cache.put(KEYS[2], make_rows(1, 2.0))
        assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
    assert present(cache) == [0, 2]


def test_of_two_victims_the_host_tier_keeps_the_more_recent() -> None:
    cache = make_cache(2, 1)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))
    cache.put(KEYS[2], make_rows(2, 2.0))
    assert present(cache) == [1, 2]
    assert torch.equal(read(cache, KEYS[1]), make_rows(1, 1.0))


def test_a_put_replaces_an_entry_of_the_host_tier() -> None:
    cache = make_cache(1, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))
    cache.put(KEYS[0], make_rows(1, 9.0))
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 9.0))
    assert torch.equal(read(cache, KEYS[1]), make_rows(1, 1.0))
    assert cache.stats().host_bytes == PAGE_BYTES
    cache.check_integrity()


def test_what_fits_only_the_host_tier_is_refused() -> None:
    cache = make_cache(1, 4)
    assert cache.put(KEYS[0], make_rows(2)) is False
    assert cache.stats().host_bytes == 0


# Epochs, clearing and closing


def test_clear_frees_all_pages_but_leased_ones() -> None:
    cache = make_cache(2, 2)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1, float(number)))
    lease = cache.get(KEYS[0])
    cache.advance_epoch()
    cache.put(KEYS[3], make_rows(1))
    cache.clear()
    stats = cache.stats()
    assert (len(cache), stats.device_bytes, stats.host_bytes, stats.leased_pages) == (0, 0, PAGE_BYTES, 1)
    assert torch.equal(lease.to_tensor(), make_rows(1, 0.0))
    lease.release()
    assert cache.stats().host_bytes == 0
    cache.check_integrity()


def test_a_new_epoch_makes_earlier_entries_unreachable_in_both_tiers() -> None:
    cache = make_cache(2, 2)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1))
    cache.advance_epoch()
    assert present(cache) == []
    assert len(cache) == 0
    assert all(cache.get(key) is None for key in KEYS)
    assert cache.stats().device_bytes == 2 * PAGE_BYTES
    assert cache.stats().evictions == 4


def test_pages_of_an_earlier_epoch_go_before_any_later_entry() -> None:
    cache = make_cache(4, 4)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1))
    cache.advance_epoch()
    for number in range(3, 7):
        cache.put(KEYS[number], make_rows(1))
    assert present(cache) == [3, 4, 5, 6]
    assert (cache.stats().evictions, cache.stats().demotions) == (3, 0)
    cache.check_integrity()


def test_a_new_epoch_leaves_leases_readable_and_their_pages_unavailable() -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(1, 1.0))
    lease = cache.get(KEYS[0])
    cache.advance_epoch()
    assert cache.put(KEYS[1], make_rows(2)) is False
    assert cache.put(KEYS[0], make_rows(1, 2.0)) is True
    assert torch.equal(lease.to_tensor(), make_rows(1, 1.0))
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 2.0))
    lease.release()
    assert cache.put(KEYS[1], make_rows(2)) is True
    cache.check_integrity()


def test_a_new_epoch_takes_constant_time_in_the_number_of_entries() -> None:
    cache = make_cache(1000)
    for number in range(1000):
        cache.put(number.to_bytes(32, "big"), torch.empty(0, WIDTH))
    index = cache._ledger.index
    calls = []
    sys.setprofile(lambda frame, event, argument: calls.append(event))
    cache.advance_epoch()
    sys.setprofile(None)
    assert len(calls) < 100
    assert len(index.entries) == 1000  # it was set aside, not emptied


def test_idle_epochs_leave_nothing_behind() -> None:
    cache = make_cache(1)
    for _ in range(100):
        cache.advance_epoch()
    assert cache._ledger._stale == []


def test_the_epoch_counts_its_ends() -> None:
    cache = make_cache(1)
    assert cache.epoch == 0
    cache.advance_epoch()
    assert cache.epoch == 1
    cache.clear()
    assert cache.epoch == 2


@pytest.mark.parametrize("end", [EmbeddingCache.clear, EmbeddingCache.advance_epoch])
def test_rows_that_a_thread_encoded_before_an_end_are_not_admitted_after_it(
    end: Callable[[EmbeddingCache], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(1))
    encoding, ended, admitted = threading.Event(), threading.Event(), []

    def encode_and_put() -> None:
        epoch = cache.epoch
        encoding.set()
        assert ended.wait(timeout=60)
        admitted.append(cache.put(KEYS[1], make_rows(1), epoch=epoch))

    thread = threading.Thread(target=encode_and_put)
    thread.start()
    assert encoding.wait(timeout=60)
    end(cache)
    cache.put(KEYS[2], make_rows(1, 2.0), epoch=cache.epoch)
    before = cache.stats()
    ended.set()
    thread.join()
    assert admitted == [False]
    assert present(cache) == [2]
    assert cache.stats() == dataclasses.replace(before, rejections=1)
    assert "they are of epoch 0, the cache is in epoch 1" in caplog.text
    cache.check_integrity()


@pytest.mark.parametrize(
    ("epoch", "error", "match"),
    [
        ("0", TypeError, "epoch must be an int, it is '0' of type str"),
        (-1, ValueError, "epoch is -1, it must be at least 0"),
    ],
)
def test_a_wrong_epoch_is_an_error(epoch: Any, error: type[Exception], match: str) -> None:
    cache = make_cache(1)
    with pytest.raises(error, match=match):
        cache.put(KEYS[0], make_rows(1), epoch=epoch)
    assert (len(cache), cache.stats().rejections) == (0, 0)


CALLS: dict[str, Callable[[EmbeddingCache], object]] = {
    "put": lambda cache: cache.put(KEYS[0], make_rows(1)),
    "reserve": lambda cache: cache.reserve(KEYS[0], 1),
    "get": lambda cache: cache.get(KEYS[0]),
    "in": lambda cache: KEYS[0] in cache,
    "len": len,
    "stats": EmbeddingCache.stats,
    "clear": EmbeddingCache.clear,
    "advance_epoch": EmbeddingCache.advance_epoch,
    "epoch": lambda cache: cache.epoch,
    "claim": lambda cache: cache.claim(KEYS[0]),
    "check_integrity": EmbeddingCache.check_integrity,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_closed_cache_refuses_every_call_but_close(name: str) -> None:
    cache = make_cache(1)
    cache.put(KEYS[0], make_rows(1))
    cache.close()
    cache.close()
    with pytest.raises(RuntimeError, match="the cache was closed"):
        CALLS[name](cache)


def test_every_public_call_is_tried_on_a_closed_cache() -> None:
    public = {name for name in vars(EmbeddingCache) if not name.startswith("_")}
    assert public - {"close"} == set(CALLS) - {"in", "len"}


# Puts that fail or are overtaken


@pytest.mark.parametrize("method", ["write", "copy_pages"])
def test_a_failed_copy_leaves_a_consistent_cache_without_the_entry(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(3, 3)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1, float(number)))

    def fail(*_: object) -> None:
        raise Failure

    with monkeypatch.context() as patch:
        patch.setattr(PagePool, method, fail)
        with pytest.raises(Failure):
            cache.put(KEYS[5], make_rows(2))
    cache.check_integrity()
    assert present(cache) == [2]
    stats = cache.stats()
    assert (stats.insertions, stats.evictions, stats.demotions) == (3, 2, 0)
    assert (stats.device_bytes, stats.host_bytes) == (PAGE_BYTES, 0)
    assert cache.put(KEYS[5], make_rows(2, 5.0))
    assert torch.equal(read(cache, KEYS[5]), make_rows(2, 5.0))


class Interrupting:
    """A lock that interrupts the given ones of its acquisitions, or of its releases once it has let go."""

    def __init__(self, lock: Any, *, acquire: int = 0, release: int = 0) -> None:
        self.lock = lock
        self.acquire, self.release = acquire, release

    def __enter__(self) -> None:
        self.acquire -= 1
        if self.acquire == 0:
            raise KeyboardInterrupt
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        self.release -= 1
        if self.release == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("when", "inserted"),
    [({"acquire": 1}, 0), ({"release": 1}, 0), ({"acquire": 2}, 0), ({"release": 2}, 1)],
    ids=["before it departs", "once it departed", "before it lands", "once it landed"],
)
def test_an_interrupted_put_loses_no_page(
    when: dict[str, int], inserted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(2, 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_lock", Interrupting(cache._lock, **when))
        with pytest.raises(KeyboardInterrupt):
            cache.put(KEYS[1], make_rows(2, 2.0))
    cache.check_integrity()
    assert cache.stats().insertions == 1 + inserted
    assert (cache._ledger.device.num_available, cache._ledger.host.num_available) == (2, 2)
    assert cache.put(KEYS[2], make_rows(2, 3.0))
    assert torch.equal(read(cache, KEYS[2]), make_rows(2, 3.0))


@pytest.mark.parametrize("method", ["current", "record"])
def test_a_put_whose_fence_cannot_be_recorded_waits_for_its_copies_and_loses_no_page(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, waits = make_cache(2, 2), []
    cache.put(KEYS[0], make_rows(2, 1.0))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache._timeline, method, interrupt)
        patch.setattr(cache._timeline, "synchronize", lambda: waits.append(cache.stats().device_bytes))
        with pytest.raises(KeyboardInterrupt):
            cache.put(KEYS[1], make_rows(2, 2.0))
    assert waits == [2 * PAGE_BYTES]  # they were still in flight
    cache.check_integrity()
    assert (cache._ledger.device.num_free, cache._ledger.host.num_free) == (2, 2)


def test_a_put_that_can_neither_be_fenced_nor_waited_for_still_loses_no_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_cache(2)

    def fail(*_: object) -> None:
        raise Failure

    with monkeypatch.context() as patch:
        for method in ("record", "synchronize"):
            patch.setattr(cache._timeline, method, fail)
        with pytest.raises(Failure):
            cache.put(KEYS[1], make_rows(2, 2.0))
    cache.check_integrity()
    assert cache._ledger.device.num_free == 2


def test_an_interrupted_look_up_leaves_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_lock", Interrupting(cache._lock, release=1))
        with pytest.raises(KeyboardInterrupt):
            cache.get(KEYS[0])
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_leases_that_are_being_taken_back_survive_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))
    cache.get(KEYS[0]).release()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_lock", Interrupting(cache._lock, acquire=1))
        with pytest.raises(KeyboardInterrupt):
            cache.stats()
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def hold_a_lease(cache: EmbeddingCache) -> object:
    cache.put(KEYS[1], make_rows(1))
    cache.put(KEYS[0], make_rows(1, 1.0))
    return cache.get(KEYS[0])


def leave_a_free_page(cache: EmbeddingCache) -> None:
    cache.put(KEYS[0], make_rows(1, 1.0))


def leave_a_page_of_an_earlier_epoch(cache: EmbeddingCache) -> None:
    cache.put(KEYS[0], make_rows(1))
    cache.advance_epoch()
    cache.put(KEYS[0], make_rows(1, 1.0))


@pytest.mark.parametrize("prepare", [hold_a_lease, leave_a_free_page, leave_a_page_of_an_earlier_epoch])
def test_a_failed_replacement_that_needs_other_pages_keeps_the_old_entry(
    prepare: Callable[[EmbeddingCache], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(2)
    held = prepare(cache)

    def fail(*_: object) -> None:
        raise Failure

    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "write", fail)
        with pytest.raises(Failure):
            cache.put(KEYS[0], make_rows(1, 2.0))
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 1.0))
    del held


def put_and_meanwhile(cache: EmbeddingCache, key: bytes, rows: Tensor, act: Callable[[], object]) -> bool:
    """Put, and call `act` between its copies and its admission."""
    with pytest.MonkeyPatch.context() as patch:
        write = PagePool.write

        def write_and_act(self: PagePool, pages: Any, rows: Tensor) -> None:
            patch.undo()
            write(self, pages, rows)
            act()

        patch.setattr(PagePool, "write", write_and_act)
        return cache.put(key, rows)


@pytest.mark.parametrize("end", [EmbeddingCache.clear, EmbeddingCache.advance_epoch, EmbeddingCache.close])
def test_a_put_that_is_overtaken_by_an_end_is_not_admitted(
    end: Callable[[EmbeddingCache], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(1, 1)
    cache.put(KEYS[0], make_rows(1, 0.0))
    assert put_and_meanwhile(cache, KEYS[1], make_rows(1, 1.0), lambda: end(cache)) is False
    assert "put of 2 rows refused: they take 32 bytes, the device tier has 32, 32 of them to be had; " in (
        caplog.text
    )
    assert "they are of epoch 0, the cache is in epoch 1" in caplog.text
    if end is EmbeddingCache.close:
        return
    cache.check_integrity()
    assert present(cache) == []
    stats = cache.stats()
    assert (stats.insertions, stats.evictions, stats.rejections) == (1, 1, 1)
    assert (stats.device_bytes, stats.host_bytes) == (0, 0)


def test_of_two_puts_of_one_key_the_last_to_be_admitted_wins() -> None:
    cache = make_cache(4)
    put_and_meanwhile(cache, KEYS[0], make_rows(2, 1.0), lambda: cache.put(KEYS[0], make_rows(2, 2.0)))
    assert torch.equal(read(cache, KEYS[0]), make_rows(2, 1.0))
    assert cache.stats().device_bytes == 2 * PAGE_BYTES
    cache.check_integrity()


def test_what_is_being_demoted_is_a_miss_and_a_newer_put_of_it_wins() -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))

    def act() -> None:
        assert cache.get(KEYS[0]) is None
        cache.check_integrity()
        assert cache.put(KEYS[0], make_rows(1, 9.0))

    put_and_meanwhile(cache, KEYS[2], make_rows(1, 2.0), act)
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 9.0))
    cache.check_integrity()
    assert cache.stats().entries == cache.stats().insertions - cache.stats().evictions


def test_pages_in_flight_belong_to_nobody_else() -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))

    def act() -> None:
        assert cache.stats().device_bytes == 2 * PAGE_BYTES
        assert cache.put(KEYS[2], make_rows(1)) is False  # both pages are, though one will be left over

    assert put_and_meanwhile(cache, KEYS[1], make_rows(1, 1.0), act)
    assert present(cache) == [1]
    assert cache.stats().device_bytes == PAGE_BYTES


# Integrity, threads, memory


def lose_a_page(cache: EmbeddingCache) -> None:
    cache._ledger.device.free_pages.pop()


def share_a_page(cache: EmbeddingCache) -> None:
    cache._ledger.device.free_pages.append(cache._ledger.index.entries[KEYS[0]].pages[0])


def miscount_leases(cache: EmbeddingCache) -> None:
    cache._ledger.index.entries[KEYS[0]].leases += 1


def miscount_leased_pages(cache: EmbeddingCache) -> None:
    cache._ledger.device.leased += 1


def miscount_flights(cache: EmbeddingCache) -> None:
    cache._ledger.device.in_flight += 1


def miscount_evictions(cache: EmbeddingCache) -> None:
    cache._ledger.counts.evictions += 1


def forget_an_entry(cache: EmbeddingCache) -> None:
    del cache._ledger.index.entries[KEYS[0]]


def drop_without_lease(cache: EmbeddingCache) -> None:
    ledger = cache._ledger
    [entry] = ledger.index.entries.values()
    ledger.index.remove(entry)
    ledger.counts.evictions += 1
    ledger._dropped.add(entry)


def cut_an_entry_short(cache: EmbeddingCache) -> None:
    cache._ledger.index.entries[KEYS[0]].num_rows = 1


@pytest.mark.parametrize(
    ("tamper", "match"),
    [
        (lose_a_page, r"device pages \[2\] do not have one owner each"),
        (share_a_page, r"device pages \[0\] do not have one owner each"),
        (miscount_leases, "leases: counted 1, booked 0"),
        (miscount_leased_pages, "leased device pages: counted 0, booked 1"),
        (miscount_flights, "device pages in flight: counted 0, booked 1"),
        (miscount_evictions, "entries: counted 1, booked 0"),
        (forget_an_entry, "keys of the device tier's policy"),
        (drop_without_lease, "dropped entries: counted 0, booked 1"),
        (cut_an_entry_short, "pages of an entry: counted 1, booked 2"),
    ],
)
def test_check_integrity_finds_what_does_not_agree(
    tamper: Callable[[EmbeddingCache], None], match: str
) -> None:
    cache = make_cache(4, 4)
    cache.put(KEYS[0], make_rows(2))
    cache.check_integrity()
    tamper(cache)
    with pytest.raises(RuntimeError, match=match):
        cache.check_integrity()


def test_many_threads_never_read_anothers_rows() -> None:
    cache = make_cache(8, 8)
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            barrier.wait()
            for step in range(400):
                number = (step * 7 + thread * 3) % len(KEYS)
                rows = torch.full((1 + number % 6, WIDTH), float(number))
                lease = cache.get(KEYS[number])
                if lease is None:
                    cache.put(KEYS[number], rows)
                else:
                    with lease:
                        assert torch.equal(lease.to_tensor(), rows)
                if step % 97 == thread:
                    cache.advance_epoch()
                if step % 89 == thread:
                    cache.clear()
                if step % 53 == 0:
                    cache.check_integrity()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    cache.check_integrity()
    stats = cache.stats()
    assert stats.hits > 0
    assert stats.demotions > 0
    assert stats.leased_pages == 0
    assert stats.entries == stats.insertions - stats.evictions


def test_a_long_run_leaves_no_objects_behind() -> None:
    cache = make_cache(4, 4)
    rows = [make_rows(pages) for pages in range(4)]

    def run(steps: int) -> int:
        for step in range(steps):
            key = (step * 31 % 997).to_bytes(32, "big")
            with cache.get(KEYS[step % 10]) or cache.get(key) or contextlib.nullcontext():
                cache.put(key, rows[1 + step % 3])
            cache.put(KEYS[step % 10], rows[1])
            if step % 1000 == 0:
                cache.advance_epoch()
        cache.check_integrity()
        gc.collect()
        return len(gc.get_objects())

    before = run(2000)
    assert run(20_000) - before < 200


def test_stats_are_a_frozen_snapshot() -> None:
    cache = make_cache(1)
    before = cache.stats()
    cache.put(KEYS[0], make_rows(1))
    assert before.entries == 0
    assert cache.stats().entries == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.entries = 1
