"""Caches of several processes on one folder: kills, restarts, erasure, damage."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import random
from typing import Any

import pytest
import torch
from tiers.cache_process import cache_process
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import is_right, key_of, put, rows_of, stats_of, tier_cache, workers_of

from vitcache import WriteBack
from vitcache.tiers import DiskTier
from vitcache.tiers.names import tenant_digest

ALL = range(1, 9)


def restarted(folder: Path, **options: Any) -> Any:
    sizes = {"device_pages": 256, "host_pages": 256}
    return tier_cache(DiskTier(folder, 64 << 20), **(sizes | options))


def found(cache: Any, num_rows: int = 2, **options: Any) -> list[int]:
    cache.fetch([key_of(number) for number in ALL], num_rows, **options)
    return [number for number in ALL if is_right(cache, number, num_rows)]


def test_kill_in_the_middle_of_write_back_leaves_right_rows_or_misses(root: Path) -> None:
    num_keys, num_rows = 24, 400
    for kill in range(2):
        with cache_process(root, page_rows=64) as process:
            process.begin("put_for_ever", num_keys, num_rows)
            process.read()
            time.sleep(0.02 * random())  # anywhere in the next ones
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


def test_entries_that_a_process_forgets_are_found_by_no_process(root: Path) -> None:
    with cache_process(root) as other, restarted(root) as cache:
        assert other.do("put", 1, 2, tenant="one") == 2
        assert other.do("put", 3, 4, tenant="two") == 4
        assert found(cache, tenant="two") == [3, 4]
        assert cache.fetch([key_of(1), key_of(2)], 2, tenant="one") == [True, True]
        assert cache.forget_tenant("one") == 2 + 2  # here, and on the disk
        assert cache.forget(key_of(3)) == 1 + 1
        assert found(cache, tenant="one") == [4]  # of the tenant two: it is in this cache
    with restarted(root) as cache:
        assert found(cache, tenant="one") == []
        assert found(cache, tenant="two") == [4]


@pytest.mark.parametrize(("change", "new_name"), [("advance_epoch", "weights"), ("clear", None)])
def test_change_of_the_weights_survives_a_kill(root: Path, change: str, new_name: Any) -> None:
    with cache_process(root) as process:
        process.do("put", 1, 2)
        process.do("call", change, weights_name=new_name)
        process.do("put", 2, 3)
    with restarted(root) as cache:
        assert found(cache) == ([2, 3] if new_name else [])


def test_process_of_the_old_weights_publishes_nothing_under_the_new_generation(root: Path) -> None:
    tier = PlantedTier(64 << 20)
    tier.inner = DiskTier(root, 64 << 20)
    with tier_cache(tier) as old, restarted(root) as new:
        assert old.flush()  # its tier is open
        new.advance_epoch(weights_name="weights")
        put(old, 1)
        tier.fail("store", OSError("planted"))
        assert old.put(key_of(2), rows_of(2))
        assert old.flush()
        assert tier.calls["open"] == 2  # opened again
        workers_of(old)[0].runner.breaker.end_probe(True)
        put(old, 3)
        assert stats_of(old).stored == 2
        assert found(new) == []
        put(new, 4)
    with restarted(root) as cache:
        assert found(cache) == [4]


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
        assert cache.put(key_of(1), rows_of(1, width=8))
        assert cache.put(key_of(2), torch.full((5, 4), 2.0))
        assert cache.flush()
    with restarted(root, width=4) as cache:
        assert cache.fetch([key_of(1), key_of(2)], [2, 5]) == [False, True]
        assert is_right(cache, 2, 5)
    with restarted(root, width=8) as cache:
        assert cache.fetch([key_of(2)], 5) == [False]
        assert cache.fetch([key_of(2)], 5, row_width=4) == [True]


def flip(file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096] ^= 1
    file.write_bytes(content)


def link(file: Path, other: Path) -> None:
    file.unlink()
    file.symlink_to(other)


def make_folder(file: Path, other: Path) -> None:
    file.unlink()
    (file / "below").mkdir(parents=True)


def make_fifo(file: Path, other: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGES: dict[str, Callable[[Path, Path], Any]] = {
    "flipped": flip,
    "emptied": lambda file, other: file.write_bytes(b""),
    "cut": lambda file, other: os.truncate(file, 4096),
    "longer": lambda file, other: os.truncate(file, 3 * 4096),
    "of another tenant": lambda file, other: file.write_bytes(other.read_bytes()),
    "another tenant's own": lambda file, other: other.replace(file),
    "link": link,
    "folder": make_folder,
    "fifo": make_fifo,
    "removed": lambda file, other: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_costs_one_encode_and_the_entry_is_stored_again(root: Path, damage: str) -> None:
    with restarted(root) as cache:
        put(cache, 1, tenant="one")
        put(cache, 1, tenant="two")  # equal keys, other files
        put(cache, 2, tenant="one")
    files = {file.parents[1].name: file for file in root.glob("entries/*/00/0001*")}
    DAMAGES[damage](files[tenant_digest("one").hex()], files[tenant_digest("two").hex()])
    with restarted(root) as cache:
        assert cache.fetch([key_of(1), key_of(2)], 2, tenant="one") == [False, True]
        counts = stats_of(cache)
        assert (counts.damaged + counts.misses, counts.failures, counts.quarantined_bytes) == (1, 0, 0)
        cache.check_integrity()
        assert cache.put(key_of(1), rows_of(1), tenant="one")
        assert cache.flush()
        is_stored = damage != "folder"  # a folder with content is never removed
        assert (stats_of(cache).stored, stats_of(cache).failures) == (is_stored, 0)
    with restarted(root) as cache:
        assert cache.fetch([key_of(1)], 2, tenant="one") == [is_stored]
        assert not is_stored or is_right(cache, 1)
