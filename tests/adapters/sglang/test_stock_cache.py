"""`StockCache`: SGLang's own cache has no bytes while vitcache builds the steps, and its size after that."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sglang_fakes.modules import importable, write

from vitcache.adapters.sglang.stock_cache import StockCache


@pytest.fixture(autouse=True)
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITCACHE_DISABLE", raising=False)


@pytest.fixture
def schedule(tmp_path: Path) -> Iterator[Any]:
    write(tmp_path)
    with importable(tmp_path):
        yield importlib.import_module("sglang.srt.managers.mm_schedule")


def test_make_gives_no_bytes_and_remembers_the_size(schedule: Any) -> None:
    cache = StockCache()
    before = cache.generation
    cache.make(schedule.init_mm_embedding_cache, 500)
    assert schedule.embedding_cache.max_size == 0
    assert cache.reserved_bytes == 500
    assert [cache.generation, cache.generation] == [before + 1] * 2


def test_disabled_make_gives_the_size_of_sglang(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    cache = StockCache()
    cache.make(schedule.init_mm_embedding_cache, 500)
    made = schedule.embedding_cache
    assert made.max_size == 500
    cache.restore()
    assert schedule.embedding_cache is made


def test_restore_gives_the_size_once_and_is_no_new_generation(schedule: Any) -> None:
    cache = StockCache()
    cache.make(schedule.init_mm_embedding_cache, 500)
    generation = cache.generation
    cache.restore()
    made = schedule.embedding_cache
    assert made.max_size == 500
    cache.restore()
    assert schedule.embedding_cache is made
    assert cache.generation == generation
    assert cache.reserved_bytes == 500


def test_size_below_0_reserves_nothing_and_is_the_restored_one(schedule: Any) -> None:
    cache = StockCache()
    cache.make(schedule.init_mm_embedding_cache, -(1 << 20))
    assert cache.reserved_bytes == 0
    cache.restore()
    assert schedule.embedding_cache.max_size == -(1 << 20)


def test_second_make_is_a_new_generation_and_can_be_restored(schedule: Any) -> None:
    cache = StockCache()
    cache.make(schedule.init_mm_embedding_cache, 500)
    first = cache.generation
    cache.restore()
    cache.make(schedule.init_mm_embedding_cache, 70)
    assert cache.generation > first
    assert schedule.embedding_cache.max_size == 0
    cache.restore()
    assert schedule.embedding_cache.max_size == 70


def test_cache_that_sglang_made_before_its_function_was_hooked_is_seen(schedule: Any) -> None:
    cache = StockCache()
    before = cache.generation
    schedule.init_mm_embedding_cache(900)
    assert cache.generation > before
    assert cache.reserved_bytes == 900
    made = schedule.embedding_cache
    cache.restore()
    assert schedule.embedding_cache is made


def test_cache_that_sglang_replaced_is_not_restored(schedule: Any) -> None:
    cache = StockCache()
    cache.make(schedule.init_mm_embedding_cache, 500)
    schedule.init_mm_embedding_cache(1)
    cache.restore()
    assert schedule.embedding_cache.max_size == 1


def test_failed_make_changes_nothing(schedule: Any) -> None:
    def fails(num_bytes: int) -> None:
        raise MemoryError(num_bytes)

    cache = StockCache()
    cache.make(schedule.init_mm_embedding_cache, 500)
    generation = cache.generation
    with pytest.raises(MemoryError):
        cache.make(fails, 600)
    assert (cache.generation, cache.reserved_bytes) == (generation, 500)


def test_process_without_a_cache_has_no_reserved_bytes() -> None:
    cache = StockCache()
    cache.restore()
    assert cache.reserved_bytes == 0


def test_clear_removes_rows_of_sglang_unless_disabled(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = StockCache()
    cache.clear()  # SGLang has made none
    cache.make(schedule.init_mm_embedding_cache, 500)
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    cache.clear()
    assert schedule.embedding_cache.rows
    monkeypatch.delenv("VITCACHE_DISABLE")
    cache.clear()
    assert not schedule.embedding_cache.rows
