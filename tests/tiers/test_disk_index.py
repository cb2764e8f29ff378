"""The index of a disk tier: lost, damaged or locked; many entries; the repair of the index by the sweep."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tiers.scene import name_of, rows_of, store_rows, transfer_of

from vitcache.tiers import DiskTier, FetchOutcome
from vitcache.tiers.header import file_bytes, pack_name, place_of

HIT, MISS = FetchOutcome.HIT, FetchOutcome.MISS
INDEX = "vitcache-index.db"
NAMES = [name_of(key, tenant=key % 3) for key in range(40)]


def remove_index(root: Path) -> None:
    for path in root.glob(f"{INDEX}*"):
        path.unlink()


def outcomes(tier: DiskTier, names: Any = NAMES) -> list[FetchOutcome]:
    return tier.fetch([transfer_of(name) for name in names])


def test_deleted_index_loses_no_entry_and_the_next_store_finds_all(tier: DiskTier, root: Path) -> None:
    store_rows(tier, NAMES)
    tier.close()
    remove_index(root)
    tier.open()
    assert tier.metrics()["entries"] == 0
    assert tier.exists(NAMES) == [True] * 40
    assert outcomes(tier) == [HIT] * 40
    assert store_rows(tier, [name_of(100)]) == [True]
    metrics = tier.metrics()
    assert (metrics["entries"], metrics["swept"]) == (41, 40)
    assert metrics["bytes"] == 41 * file_bytes(NAMES[0])


def test_index_deleted_while_open_is_made_again(tier: DiskTier, root: Path) -> None:
    store_rows(tier, NAMES)
    remove_index(root)
    assert outcomes(tier) == [HIT] * 40
    assert store_rows(tier, [name_of(100)]) == [True]
    assert tier.metrics()["entries"] == 41


def test_erase_needs_no_index(tier: DiskTier, root: Path) -> None:
    store_rows(tier, NAMES)
    tier.close()
    remove_index(root)
    tier.open()
    assert tier.erase(tenant=NAMES[0].tenant) == 14
    assert tier.erase(key=NAMES[1].key) == 1
    gone = {name for name in NAMES if name.tenant == NAMES[0].tenant} | {NAMES[1]}
    assert outcomes(tier) == [MISS if name in gone else HIT for name in NAMES]
    store_rows(tier, [name_of(100)])
    assert tier.metrics()["entries"] == 26


@pytest.mark.parametrize(
    "content", [b"", b"no database" * 1000, "header kept"], ids=["empty", "text", "pages"]
)
def test_damaged_index_is_made_again_and_logged(
    tier: DiskTier, root: Path, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store_rows(tier, NAMES)
    tier.close()
    if content == "header kept":
        whole = (root / INDEX).read_bytes()
        content = whole[:100] + b"\xff" * (len(whole) - 100)
    (root / INDEX).write_bytes(content)
    with caplog.at_level(logging.ERROR, "vitcache.tiers"):
        tier.open()
        assert outcomes(tier) == [HIT] * 40
        assert store_rows(tier, [name_of(100)]) == [True]
    assert tier.metrics()["entries"] == 41
    if content:
        assert tier.metrics()["rebuilt"] == 1
        assert len([record for record in caplog.records if "damaged" in record.message]) == 1


def test_index_of_another_version_is_made_again(tier: DiskTier, root: Path) -> None:
    store_rows(tier, NAMES)
    tier.close()
    with sqlite3.connect(root / INDEX) as connection:
        connection.execute("pragma user_version=99")
    connection.close()
    tier.open()
    assert store_rows(tier, [name_of(100)]) == [True]
    assert (tier.metrics()["entries"], tier.metrics()["rebuilt"]) == (41, 1)


def test_table_dropped_while_open_is_made_again(tier: DiskTier, root: Path) -> None:
    store_rows(tier, NAMES)
    with sqlite3.connect(root / INDEX) as connection:
        connection.execute("drop table entries")
    connection.close()
    store_rows(tier, [name_of(100)])
    store_rows(tier, [name_of(101)])
    assert tier.metrics()["entries"] == 42
    assert tier.metrics()["rebuilt"] == 1


def test_locked_index_fails_a_store_and_no_fetch(
    tier: DiskTier, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_rows(tier, NAMES[:2])
    tier.close()
    monkeypatch.setattr("vitcache.tiers.disk_index._WAIT_SECONDS", 0.0)
    tier.open()
    connection = sqlite3.connect(root / INDEX, isolation_level=None)
    connection.execute("begin immediate")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store_rows(tier, NAMES[2:3])
    assert tier.exists(NAMES[:3]) == [True, True, False]
    path = root.joinpath("entries", *place_of(NAMES[1]))
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert outcomes(tier, NAMES[:3]) == [HIT, FetchOutcome.DAMAGED, MISS]
    assert tier.erase(tenant=NAMES[0].tenant) == 1
    assert tier.metrics()["entries"] == 2  # as it was
    connection.execute("rollback")
    connection.close()
    assert store_rows(tier, NAMES[2:3]) == [True]
    while not tier._sweep.is_done:
        store_rows(tier, NAMES[2:3])
    assert tier.metrics()["entries"] == 1


def test_hit_writes_nothing(tier: DiskTier, root: Path) -> None:
    store_rows(tier, NAMES)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert outcomes(tier) == [HIT] * 40
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_last_uses_survive_a_restart(root: Path) -> None:
    names = [name_of(key, 1, 400 << 10) for key in range(3)]
    tier = DiskTier(root, 1 << 20)
    tier.open()
    store_rows(tier, names[:1])
    store_rows(tier, names[1:2])
    assert outcomes(tier, names[:1]) == [HIT]
    tier.close()
    tier.open()
    assert store_rows(tier, names[2:]) == [True]
    assert outcomes(tier, names) == [HIT, MISS, HIT]
    tier.close()


def test_open_and_exists_list_no_folder_of_100000_entries(tier: DiskTier, root: Path) -> None:
    store_rows(tier, NAMES)
    rows = [(pack_name(name_of(key, 7, 100)), 8192, key) for key in range(100_000)]
    tier._index.insert(rows)
    assert tier.metrics()["entries"] == 100_040
    tier.close()
    tier.open()
    assert (
        tier.exists([*NAMES[:16], *(name_of(key, 7, 100) for key in range(16))]) == [True] * 16 + [False] * 16
    )
    assert tier.fetch([transfer_of(NAMES[0])]) == [HIT]
    assert tier._sweep.num_listed == 0
    assert tier.metrics()["entries"] == 100_040


def test_entries_of_the_index_without_a_file_are_removed(tier: DiskTier) -> None:
    store_rows(tier, NAMES)
    tier._index.insert([(pack_name(name_of(key, 7, 100)), 8192, key) for key in range(200)])
    tier.close()
    tier.open()
    while not tier._sweep.is_done:
        listed = tier._sweep.num_listed
        store_rows(tier, NAMES[:1])
        assert tier._sweep.num_listed - listed <= 64
    assert tier.metrics()["entries"] == 40
    assert tier.metrics()["bytes"] == 40 * file_bytes(NAMES[0])


def test_each_write_continues_the_sweep_by_a_limited_number_of_files(tier: DiskTier, root: Path) -> None:
    names = [name_of(key) for key in range(300)]
    store_rows(tier, names)
    tier.close()
    with sqlite3.connect(root / INDEX) as connection:
        connection.execute("delete from entries")
    connection.close()
    tier.open()
    counts = []
    while not tier._sweep.is_done:
        store_rows(tier, [names[0]])
        counts.append(tier.metrics()["entries"])
    assert counts[-1] == 300
    assert all(later - earlier <= 65 for earlier, later in zip([0, *counts], counts, strict=False))
    assert len(counts) >= 5


def test_temporary_file_of_an_ended_process_is_removed_and_of_a_live_one_stays(
    tier: DiskTier, root: Path
) -> None:
    import fcntl

    store_rows(tier, NAMES[:1])
    ended, live, foreign = (
        root / "tmp" / name for name in (f"1.{'0' * 16}.part", f"2.{'0' * 16}.part", "notes.txt")
    )
    for path in (ended, live, foreign):
        path.write_bytes(b"x")
    with open(live) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        tier.close()
        tier.open()
        store_rows(tier, NAMES[:1])
        assert [path.exists() for path in (ended, live, foreign)] == [False, True, True]
    tier.erase(key=NAMES[0].key)
    assert [path.exists() for path in (ended, live, foreign)] == [False, False, True]


@pytest.mark.parametrize(
    "change",
    [{"weights": bytes([9]) * 32}, {"tenant": bytes([9]) * 32}, {"row_bytes": 50}],
    ids=lambda change: next(iter(change)),
)
def test_restart_with_another_weights_name_tenant_or_width_misses_all(tier: DiskTier, change: Any) -> None:
    store_rows(tier, NAMES)
    tier.close()
    tier.open()
    assert outcomes(tier, [name._replace(**change) for name in NAMES]) == [MISS] * 40
    assert outcomes(tier) == [HIT] * 40


def test_folder_removed_while_open_misses_and_later_stores_make_it_again(tier: DiskTier, root: Path) -> None:
    store_rows(tier, NAMES)
    tier.revoke(NAMES[0].weights)
    shutil.rmtree(root)
    assert tier.exists(NAMES) == [False] * 40
    assert outcomes(tier) == [MISS] * 40
    assert tier.erase(key=NAMES[0].key) == 0
    assert tier.generation(NAMES[0].weights) == 0
    assert tier.claim(NAMES[:1], 1.0) == [True]
    assert store_rows(tier, NAMES) == [True] * 40
    assert outcomes(tier) == [HIT] * 40
    assert tier.metrics()["entries"] == 40
    assert os.stat(root).st_mode & 0o777 == 0o700
    assert rows_of(NAMES[0]).size == 500
