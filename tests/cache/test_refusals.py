"""Calls that the cache rejects, and their log lines and error messages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, WIDTH, make_rows, present, read
from caches import make_cache

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.errors import CudaError
from vitcache.testing import inspect

MOST = sys.maxsize


def test_put_oversize_entry_is_rejected_and_evicts_nothing(caplog: pytest.LogCaptureFixture) -> None:
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
        "put of 6 rows rejected: they need 96 bytes; the device tier has 64 bytes, 64 of them free or "
        "evictable; raise device_bytes; further rejections for this reason are only counted, in "
        "stats().rejections"
    )


def test_put_in_both_tiers_names_the_tier_that_is_too_small(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(2, 4)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1), tier="host")
    leases = [cache.get(KEYS[number]) for number in range(4)]  # no host page is free or evictable
    assert cache.put(KEYS[5], make_rows(3), tier="both") is False
    assert "they need 96 bytes; the device tier has 64 bytes, " in caplog.text
    assert "; raise device_bytes; " in caplog.text
    assert all(leases)


def test_put_beyond_the_unleased_pages_is_rejected_and_evicts_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = make_cache(4)
    for number in range(4):
        cache.put(KEYS[number], make_rows(1))
    leases = [cache.get(KEYS[number]) for number in (1, 3)]
    assert cache.put(KEYS[5], make_rows(3)) is False
    assert present(cache) == [0, 1, 2, 3]
    assert "they need 96 bytes; the device tier has 128 bytes, 64 of them free or evictable; " in caplog.text
    assert "raise device_bytes or release leases" in caplog.text
    leases[0].release()
    assert cache.put(KEYS[5], make_rows(3)) is True
    assert present(cache) == [3, 5]
    assert cache.stats().rejections == 1


def test_each_reason_is_logged_once_and_every_rejection_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(2)
    for _ in range(3):
        assert not cache.put(KEYS[0], make_rows(3))  # larger than the tier
        assert cache.reserve(KEYS[0], 9) is None
    cache.put(KEYS[0], make_rows(1))
    with cache.get(KEYS[0]):
        for _ in range(3):
            assert not cache.put(KEYS[1], make_rows(2))  # a page is leased
    cache.advance_epoch()
    for number in range(3):
        assert not cache.put(KEYS[number], make_rows(1), epoch=0)
        with cache.reserve(KEYS[number], 1) as reservation:
            cache.advance_epoch()
            assert not reservation.commit()
    reasons = ["raise device_bytes; ", "raise device_bytes or release leases; ", "the rows are of epoch 0, "]
    assert [reason in record.message for reason, record in zip(reasons, caplog.records, strict=True)] == [
        True
    ] * 3
    assert all("are only counted, in stats().rejections" in record.message for record in caplog.records)
    assert cache.stats().rejections == 15
    assert inspect(cache).logged_rejections == ["size device", "room device", "epoch"]
    assert not make_cache(2).put(KEYS[0], make_rows(3))  # another cache logs again
    assert len(caplog.records) == 4


def test_threads_log_a_reason_once(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(2)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: cache.put(KEYS[0], make_rows(3)), range(64)))
    assert not any(results)
    assert (len(caplog.records), cache.stats().rejections) == (1, 64)


def test_has_room_counts_pages_that_are_neither_leased_nor_pending() -> None:
    cache = make_cache(4)
    cache.put(KEYS[0], make_rows(3))
    assert [cache.has_room(rows) for rows in (0, 8, 9)] == [True, True, False]
    with cache.get(KEYS[0]):
        assert [cache.has_room(rows) for rows in (0, 2, 3)] == [True, True, False]
        with cache.reserve(KEYS[1], 1):
            assert not cache.has_room(0)  # an empty entry needs a page
    assert cache.has_room(8)
    assert cache.stats().rejections == 0
    for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="num_rows"):
            cache.has_room(wrong)  # type: ignore[arg-type]
    cache.close()
    with pytest.raises(RuntimeError, match="closed"):
        cache.has_room(1)


@pytest.mark.parametrize(
    ("key", "rows", "error", "match"),
    [
        ("a" * 32, make_rows(1), TypeError, "key must be bytes, got str"),
        (bytearray(32), make_rows(1), TypeError, "key must be bytes, got bytearray"),
        (bytes(31), make_rows(1), ValueError, "key has 31 bytes, it must have 32"),
        (KEYS[1], [[0.0] * WIDTH], TypeError, "rows must be a tensor, got list"),
        (KEYS[1], torch.zeros(2, WIDTH + 1), ValueError, r"shape \(2, 5\), it must be \(num_rows, 4\)"),
        (KEYS[1], torch.zeros(WIDTH), ValueError, r"shape \(4,\), it must be \(num_rows, 4\)"),
        (KEYS[1], torch.zeros(1, 2, WIDTH), ValueError, r"shape \(1, 2, 4\), it must be \(num_rows, 4\)"),
        (KEYS[1], torch.zeros(2, WIDTH, dtype=torch.float64), TypeError, "torch.float64 on cpu, it must be"),
        (KEYS[1], torch.zeros(2, WIDTH, dtype=torch.int32), TypeError, "torch.int32 on cpu, it must be"),
        (KEYS[1], torch.zeros(2, WIDTH, device="meta"), TypeError, "torch.float32 on meta, it must be"),
        (KEYS[1], torch.zeros(2, WIDTH).to_sparse(), TypeError, "torch.sparse_coo tensor of"),
    ],
)
def test_put_invalid_key_or_rows_raises_and_changes_nothing(
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
def test_look_up_invalid_key_raises_and_counts_no_miss(
    look_up: Callable[[EmbeddingCache, Any], object],
) -> None:
    cache = make_cache(1)
    with pytest.raises(TypeError, match="key must be bytes, got int"):
        look_up(cache, 1)
    with pytest.raises(ValueError, match="key has 33 bytes, it must have 32"):
        look_up(cache, bytes(33))
    assert cache.stats().misses == 0


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"device_bytes": PAGE_BYTES - 1},
            ValueError,
            "device_bytes is 31, it must be at least 32: one page of 2 rows",
        ),
        ({"device_bytes": 0}, ValueError, "device_bytes is 0, it must be at least 32: one page of 2 rows"),
        (
            {"device_bytes": 1 << 63},
            ValueError,
            f"device_bytes is {1 << 63}, it must be at most {sys.maxsize}",
        ),
        (
            {"host_bytes": "8388608TiB"},
            ValueError,
            f"host_bytes is {1 << 63}, it must be at most {sys.maxsize}",
        ),
        (
            {"host_bytes": PAGE_BYTES - 1},
            ValueError,
            "host_bytes is 31, it must be at least 32: one page of 2 rows",
        ),
        ({"host_bytes": -1}, ValueError, "host_bytes is -1, it must be at least 0"),
        (
            {"device_bytes": 1e9},
            TypeError,
            "device_bytes must be an int or a str such as '8GiB', got 1000000000.0 of type float",
        ),
        ({"device_bytes": True}, TypeError, "device_bytes must be an int or a str .*, got True of type bool"),
        ({"host_bytes": False}, TypeError, "host_bytes must be an int or a str .*, got False of type bool"),
        ({"device_bytes": "31B"}, ValueError, "device_bytes is 31, it must be at least 32: one page of 2"),
        ({"device_bytes": "8 gib"}, ValueError, "device_bytes is '8 gib', it must be a number and a unit"),
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
def test_constructor_invalid_argument_raises_and_names_it(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        make_cache(1, **options)


def test_constructor_row_width_zero_raises() -> None:
    with pytest.raises(ValueError, match="row_width is 0, it must be at least 1"):
        EmbeddingCache(0, device_bytes=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_without_cuda_defaults_to_the_cpu_and_cuda_raises() -> None:
    assert make_cache(1, device=None).device == torch.device("cpu")
    with pytest.raises(CudaError, match="device is cuda, but torch finds no CUDA device"):
        make_cache(1, device="cuda")


@pytest.mark.parametrize("num_rows", [5, True, "12"])
def test_expect_of_one_number_is_refused(num_rows: Any) -> None:
    cache = make_cache(2, 8)
    with pytest.raises(TypeError, match="num_rows must be a sequence of ints, got"):
        cache.expect(num_rows)
