"""Checksums: what changes in host memory is found before it is placed, and nothing else is called changed."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, PAGE_ROWS, WIDTH, make_rows, present, read
from caches import make_cache
from failure import Failure, fail
from stream_model import StreamModel

from vitcache.cache import checksums
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.testing import inspect


def make_demoted(num_rows: int = 2 * PAGE_ROWS, **options: Any) -> EmbeddingCache:
    """A cache that has entry 0 in the host tier, and its checksum."""
    cache = make_cache(2, 4, checksum=True, **options)
    cache.put(KEYS[0], make_rows(2)[:num_rows])
    cache.put(KEYS[1], make_rows(2, 1.0))
    assert cache.get(KEYS[0]).tier == "host"  # it waits for the checksum
    return cache


def flip(cache: EmbeddingCache, *, tier: str = "host", row: int = 0, bit: int = 0) -> None:
    """Change one bit of a row of entry 0."""
    entry = inspect(cache).entry(KEYS[0], tier)
    place = entry.pages[row // PAGE_ROWS] * PAGE_ROWS + row % PAGE_ROWS
    entry.pool.rows[place].view(torch.uint8)[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 3, 4])
def test_what_has_not_changed_is_a_hit(dtype: torch.dtype, num_rows: int) -> None:
    cache = make_demoted(num_rows, dtype=dtype)
    for _ in range(3):
        assert torch.equal(read(cache, KEYS[0]), make_rows(2)[:num_rows].to(dtype))
    assert (cache.stats().hits, cache.stats().corruptions) == (4, 0)


@pytest.mark.parametrize("bit", [0, 31, 8 * 4 * WIDTH - 1])
@pytest.mark.parametrize("row", [0, PAGE_ROWS, 2 * PAGE_ROWS - 1])
def test_one_bit_that_changed_makes_a_miss_of_the_entry(
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


def test_rows_beyond_the_entry_and_those_on_the_device_are_not_looked_at() -> None:
    cache = make_demoted(3)
    flip(cache, row=3)
    assert torch.equal(read(cache, KEYS[0]), make_rows(2)[:3])
    cache.put(KEYS[0], make_rows(2))
    flip(cache, tier="device")
    assert not torch.equal(read(cache, KEYS[0]), make_rows(2))


def test_without_checksums_nothing_is_compared() -> None:
    cache = make_cache(2, 4)
    cache.put(KEYS[0], make_rows(2))
    cache.put(KEYS[1], make_rows(2, 1.0))
    flip(cache)
    assert not torch.equal(read(cache, KEYS[0]), make_rows(2))


def test_a_changed_entry_that_is_leased_leaves_with_its_lease() -> None:
    cache = make_demoted()
    with cache.get(KEYS[0]) as held:
        flip(cache)
        assert cache.get(KEYS[0]) is None
        assert cache.stats().host_bytes == 2 * PAGE_BYTES
        assert held.to_tensor().shape == (4, WIDTH)
    assert cache.stats().host_bytes == 0
    cache.check_integrity()


def promote(cache: EmbeddingCache) -> None:
    with cache.get(KEYS[0]) as lease, cache.promote(lease) as reservation:
        reservation.write(lease.to_tensor())
        assert reservation.commit()


def test_a_copy_keeps_its_checksum_while_it_backs_a_device_entry() -> None:
    cache = make_demoted()
    promote(cache)
    flip(cache)
    assert torch.equal(read(cache, KEYS[0]), make_rows(2))  # on the device it is as it was
    cache.put(KEYS[2], make_rows(2, 2.0))  # it goes back to its copy, with no new checksum
    assert cache.get(KEYS[0]) is None
    assert cache.stats().corruptions == 1
    cache.check_integrity()


def test_an_entry_that_was_promoted_while_its_copy_was_compared_goes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_demoted()
    take = checksums.checksum

    def promote_meanwhile(*arguments: Any) -> int:
        monkeypatch.undo()
        promote(cache)
        flip(cache)
        return take(*arguments)

    monkeypatch.setattr(checksums, "checksum", promote_meanwhile)
    assert cache.get(KEYS[0]) is None
    assert KEYS[0] not in cache
    cache.check_integrity()


def test_a_checksum_is_taken_once_the_copy_is_over_and_nobody_but_a_reader_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = StreamModel()
    may_finish, finished = threading.Event(), []

    def wait_on_host(fence: Any) -> None:
        assert may_finish.wait(timeout=60)
        model.note_call("wait_on_host")
        finished.append(fence)

    monkeypatch.setattr(model, "wait_on_host", wait_on_host)
    cache = model.make_cache(1, 1, checksum=True)
    cache.put(KEYS[0], torch.zeros(1, 2))
    cache.put(KEYS[1], torch.ones(1, 2))
    cache.get(KEYS[1]).release()
    assert finished == []
    may_finish.set()
    lease = cache.get(KEYS[0])
    assert finished == [lease.pin[0].written]
    assert model.locked_calls == []


def test_a_copy_that_failed_on_the_device_is_an_error_of_the_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(1, 1, checksum=True)
    monkeypatch.setattr(inspect(cache).timeline, "wait_on_host", fail)
    cache.put(KEYS[0], make_rows(1))
    cache.put(KEYS[1], make_rows(1))
    with pytest.raises(Failure):
        cache.get(KEYS[0])
    assert cache.stats().leased_pages == 0
    cache.check_integrity()
