"""Caches of several processes on one folder: kills, restarts, and what one process ends for the other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiers.cache_process import CacheProcess, cache_process
from tiers.tier_cache import is_right, key_of, put, stats_of, tier_cache
from vitcache.tiers import DiskTier

from vitcache import WriteBack

ALL = range(1, 9)


def restarted(folder: Path, **options: Any) -> Any:
    sizes = {"device_pages": 256, "host_pages": 256}
    return tier_cache(DiskTier(folder, 64 << 20), **(sizes | options))


def found(cache: Any, num_rows: int = 2, **options: Any) -> list[int]:
    cache.fetch([key_of(number) for number in ALL], num_rows, **options)
    return [number for number in ALL if is_right(cache, number, num_rows)]


def test_kill_in_the_middle_of_write_back_leaves_right_rows_or_misses(root: Path) -> None:
    num_keys, num_rows = 24, 400
    for kill in range(4):
        with cache_process(root, page_rows=64) as process:
            process.begin("put_for_ever", num_keys, num_rows)
            process.read()
            time.sleep(0.013 * kill)  # anywhere in the next ones
        with restarted(root, page_rows=64) as cache:
            numbers = range(num_keys)
            cache.fetch([key_of(number) for number in numbers], num_rows)
            assert sum(is_right(cache, number, num_rows) for number in numbers) > num_keys // 2
            counts = stats_of(cache)
            assert (counts.damaged, counts.failures) == (0, 0)
            cache.check_integrity()
            put(cache, 100 + kill)
            cache.flush()
            own = stats_of(cache).own
        files = [file for file in root.glob("entries/*/*/*") if file.is_file()]
        assert own["bytes"] == sum(file.stat().st_size for file in files)
        assert not list(root.glob("tmp/*"))


def test_what_a_process_forgets_no_process_finds_any_more(root: Path) -> None:
    with cache_process(root) as first, cache_process(root) as second:
        assert first.do("put", 1, 2, tenant="one") == 2
        assert first.do("put", 3, 4, tenant="two") == 4
        assert second.do("found", 1, 2, tenant="two") == []
        assert second.do("found", 2, tenant="one") == [2]
        assert second.do("call", "forget_tenant", "one") == 1 + 2  # here, and on the disk
        assert second.do("found", 1, 2, tenant="one") == []
        assert second.do("call", "forget", 3) == 1
        assert second.do("found", 3, 4, tenant="two") == [4]
    with restarted(root) as cache:
        assert found(cache, tenant="one") == []
        assert found(cache, tenant="two") == [4]


@pytest.mark.parametrize("change", ["advance_epoch", "clear"])
@pytest.mark.parametrize("new_name", ["weights", None])
def test_process_that_is_killed_after_a_change_has_ended_what_was_before(
    root: Path, change: str, new_name: Any
) -> None:
    with cache_process(root) as process:
        process.do("put", 1, 2)
        process.do("call", change, weights_name=new_name)
        process.do("put", 2, 3)
    with restarted(root) as cache:
        assert found(cache) == ([2, 3] if new_name else [])


def test_process_of_the_old_weights_publishes_nothing_under_the_new_generation(root: Path) -> None:
    with cache_process(root) as old, cache_process(root) as new:
        new.do("call", "advance_epoch", weights_name="weights")
        old.do("put", 1, 2)
        assert old.do("found", 1, 2) == [1, 2]
        assert new.do("found", 1, 2) == []
        new.do("put", 3)
    with restarted(root) as cache:
        assert found(cache) == [3]


@pytest.mark.parametrize(
    "options",
    [
        {"weights_name": "other"},
        {"weights_name": b"weights"},
        {"weights_name": None},
        {"dtype": torch.bfloat16},
        {"width": 8},
        {"width": 2},
    ],
    ids=str,
)
def test_restart_with_other_weights_dtype_or_width_misses_all(root: Path, options: Any) -> None:
    with restarted(root) as cache:
        put(cache, *ALL)
    with restarted(root, **options) as cache:
        assert cache.fetch([key_of(number) for number in ALL], 2) == [False] * len(ALL)
        assert stats_of(cache).misses == len(ALL)
    with restarted(root) as cache:
        assert found(cache) == list(ALL)


@pytest.mark.parametrize(
    "options",
    [
        {"page_rows": 1},
        {"page_rows": 7},
        {"policy": "s3fifo", "checksum": True},
        {"policy": "cost", "write_back": WriteBack(hits=2)},
        {"record_evictions": 3, "device_pages": 1, "host_pages": 1},
    ],
    ids=str,
)
def test_restart_with_other_pages_or_policy_finds_all(root: Path, options: Any) -> None:
    with restarted(root) as cache:
        put(cache, *ALL)
    with restarted(root, **options) as cache:
        for number in ALL:
            assert cache.fetch([key_of(number)], 2) == [True]
            assert is_right(cache, number)
        cache.check_integrity()


def test_narrow_rows_of_a_wider_cache_are_found_by_a_cache_of_that_width(root: Path) -> None:
    with restarted(root, width=8) as cache:
        put(cache, 1)
        assert cache.put(key_of(2), torch.full((5, 4), 2.0)) and cache.flush()
    with restarted(root, width=4) as cache:
        assert cache.fetch([key_of(1), key_of(2)], [2, 5]) == [False, True]
        assert is_right(cache, 2, 5)
    with restarted(root, width=8) as cache:
        assert cache.fetch([key_of(2)], 5) == [False]
        assert cache.fetch([key_of(2)], 5, row_width=4) == [True]
