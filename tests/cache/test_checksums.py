"""Checksums: a host entry whose rows have changed is dropped, and an unchanged one is a hit."""

from __future__ import annotations

import gc
import logging
import threading
from functools import partial
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, PAGE_ROWS, WIDTH, make_rows, present, read
from caches import make_cache
from failure import Failure, fail
from interrupts import interrupt
from stream_model import StreamModel

from vitcache.cache import checksums
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device import jobs, thread_start, worker_threads
from vitcache.testing import inspect


def make_demoted(num_rows: int = 2 * PAGE_ROWS, **options: Any) -> EmbeddingCache:
    """A cache with entry 0 and its checksum in the host tier."""
    cache = make_cache(2, 4, checksum=True, **options)
    cache.put(KEYS[0], make_rows(2)[:num_rows])
    cache.put(KEYS[1], make_rows(2, 1.0))
    assert cache.get(KEYS[0]).tier == "host"  # the look-up waits for the checksum
    return cache


def flip(cache: EmbeddingCache, *, tier: str = "host", row: int = 0, bit: int = 0) -> None:
    """Change one bit of a row of entry 0."""
    entry = inspect(cache).entry(KEYS[0], tier)
    place = entry.pages[row // PAGE_ROWS] * PAGE_ROWS + row % PAGE_ROWS
    entry.memory.rows[place].view(torch.uint8)[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 3, 4])
def test_get_unchanged_host_entry_is_a_hit(dtype: torch.dtype, num_rows: int) -> None:
    cache = make_demoted(num_rows, dtype=dtype)
    for _ in range(3):
        assert torch.equal(read(cache, KEYS[0]), make_rows(2)[:num_rows].to(dtype))
    assert (cache.stats().hits, cache.stats().corruptions) == (4, 0)


@pytest.mark.parametrize("bit", [0, 31, 8 * 4 * WIDTH - 1])
@pytest.mark.parametrize("row", [0, PAGE_ROWS, 2 * PAGE_ROWS - 1])
def test_get_host_entry_with_one_changed_bit_is_a_miss_and_drops_it(
    row: int, bit: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_demoted()
    before = cache.stats()
    flip(cache, row=row, bit=bit)
    assert cache.get(KEYS[0], num_rows=4) is None
    assert present(cache) == [1]
    stats = cache.stats()
    assert (stats.corruptions, stats.evictions) == (1, before.evictions + 1)
    assert (stats.hits, stats.misses) == (before.hits, before.misses + 1)
    assert (stats.host, stats.host_bytes) == (before.host, 0)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("vitcache.cache", logging.ERROR)
    assert "4 rows in the host tier have changed" in record.message
    cache.check_integrity()
    assert cache.put(KEYS[0], make_rows(2, 5.0))
    assert torch.equal(read(cache, KEYS[0]), make_rows(2, 5.0))


def test_checksum_ignores_rows_beyond_the_entry_and_device_rows() -> None:
    cache = make_demoted(3)
    flip(cache, row=3)
    assert torch.equal(read(cache, KEYS[0]), make_rows(2)[:3])
    cache.put(KEYS[0], make_rows(2))
    flip(cache, tier="device")
    assert not torch.equal(read(cache, KEYS[0]), make_rows(2))


def test_cache_without_checksums_returns_changed_host_rows() -> None:
    cache = make_cache(2, 4)
    cache.put(KEYS[0], make_rows(2))
    cache.put(KEYS[1], make_rows(2, 1.0))
    flip(cache)
    assert not torch.equal(read(cache, KEYS[0]), make_rows(2))


def test_changed_leased_entry_keeps_its_pages_until_the_release() -> None:
    cache = make_demoted()
    with cache.get(KEYS[0]) as lease:
        flip(cache)
        assert cache.get(KEYS[0]) is None
        assert cache.stats().host_bytes == 2 * PAGE_BYTES
        assert lease.to_tensor().shape == (4, WIDTH)
    assert cache.stats().host_bytes == 0
    cache.check_integrity()


def promote(cache: EmbeddingCache) -> None:
    with cache.get(KEYS[0]) as lease, cache.promote(lease) as reservation:
        reservation.write(lease.to_tensor())
        assert reservation.commit()


def test_host_copy_keeps_its_checksum_after_a_promotion() -> None:
    cache = make_demoted()
    promote(cache)
    flip(cache)
    assert torch.equal(read(cache, KEYS[0]), make_rows(2))  # the device rows have not changed
    cache.put(KEYS[2], make_rows(2, 2.0))  # demotes 0 to its host copy, without a new checksum
    assert cache.get(KEYS[0]) is None
    assert cache.stats().corruptions == 1
    cache.check_integrity()


def test_entry_promoted_during_a_failed_comparison_is_dropped_in_both_tiers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_demoted()
    checksum = checksums.checksum

    def promote_and_flip(*arguments: Any) -> int:
        monkeypatch.undo()
        promote(cache)
        flip(cache)
        return checksum(*arguments)

    monkeypatch.setattr(checksums, "checksum", promote_and_flip)
    assert cache.get(KEYS[0]) is None
    assert KEYS[0] not in cache
    cache.check_integrity()


def test_checksum_waits_for_its_copy_and_only_a_look_up_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = StreamModel()
    copy_may_complete, waited_for = threading.Event(), []

    def wait_on_host(fence: Any) -> None:
        assert copy_may_complete.wait(timeout=60)
        model.note_call("wait_on_host")
        waited_for.append(fence)

    monkeypatch.setattr(model, "wait_on_host", wait_on_host)
    cache = model.make_cache(1, 1, checksum=True)
    cache.put(KEYS[0], torch.zeros(1, 2))
    cache.put(KEYS[1], torch.ones(1, 2))
    cache.get(KEYS[1]).release()
    assert waited_for == []
    copy_may_complete.set()
    lease = cache.get(KEYS[0])
    assert waited_for == [inspect(cache).lease_entry(lease).written]
    assert model.inconsistent_calls == []


def test_get_raises_if_the_copy_to_the_host_tier_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(1, 1, checksum=True)
    monkeypatch.setattr(inspect(cache).timeline, "wait_on_host", fail)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(1))
    with pytest.raises(Failure):
        cache.get(KEYS[0])
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_checksum_without_a_thread_is_computed_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    cache = make_demoted()
    assert torch.equal(read(cache, KEYS[0]), make_rows(2))
    flip(cache)
    assert cache.get(KEYS[0]) is None
    assert cache.stats().corruptions == 1


def test_put_interrupted_while_its_checksum_is_queued_leaves_the_cache_usable() -> None:
    files = {checksums.__file__, worker_threads.__file__, thread_start.__file__, jobs.__file__}
    line, is_interrupted = 1, True
    while is_interrupted:
        cache = make_cache(2, 4, checksum=True)
        cache.put(KEYS[0], make_rows(2))
        is_interrupted = interrupt(partial(cache.put, KEYS[1], make_rows(2, 1.0)), line, files)
        cache.check_integrity()
        inserted: list[bool] = []
        put = partial(cache.put, KEYS[2], make_rows(2, 2.0))
        other = threading.Thread(target=lambda inserted=inserted, put=put: inserted.append(put()))
        other.start()
        other.join(60)
        assert inserted == [True], line
        assert torch.equal(read(cache, KEYS[2]), make_rows(2, 2.0))
        for key in KEYS[:2]:
            cache.get(key)
        cache.check_integrity()
        gc.collect(1)
        line += 1
    assert line > 10
