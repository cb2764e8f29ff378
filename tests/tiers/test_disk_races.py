"""Two processes between each other's steps: every file keeps a row in the index, so that the limit holds."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiers.scene import name_of, store_rows, transfer_of

from vitcache.tiers import DiskTier, EntryName, FetchOutcome
from vitcache.tiers.header import file_bytes, name_at, pack_name, place_of

NAME = name_of(1)
YEAR_NS = 365 * 24 * 3600 * 10**9


def opened(folder: Path, max_bytes: int = 1 << 20) -> DiskTier:
    tier = DiskTier(folder, max_bytes)
    tier.open()
    return tier


def files_in(folder: Path) -> set[EntryName]:
    names = {name_at(path.parts[-3], path.name) for path in folder.glob("entries/*/*/*")}
    assert None not in names
    return names  # type: ignore[return-value]


def check_rows(folder: Path) -> None:
    """Check that each file has a row in the index."""
    connection = sqlite3.connect(folder / "vitcache-index.db")
    rows = {name for (name,) in connection.execute("select name from entries")}
    totals = connection.execute("select entries, bytes from totals").fetchone()
    connection.close()
    assert {pack_name(name) for name in files_in(folder)} <= rows
    assert totals[0] == len(rows)


def do_before(target: Any, method: str, act: Callable[[], object]) -> None:
    """Call `act` before the next call of a method, as another process may act there."""
    call = getattr(target, method)

    def first(*arguments: Any) -> Any:
        setattr(target, method, call)
        act()
        return call(*arguments)

    setattr(target, method, first)


def damage(folder: Path) -> None:
    path = folder.joinpath("entries", *place_of(NAME))
    path.write_bytes(b"x" + path.read_bytes()[1:])


def test_entry_stored_while_a_damaged_file_leaves_keeps_its_row(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    assert store_rows(one, [NAME]) == [True]
    damage(tmp_path)
    do_before(one._index, "remove", lambda: store_rows(other, [NAME]))
    assert one.fetch([transfer_of(NAME)]) == [FetchOutcome.DAMAGED]
    check_rows(tmp_path)
    assert other.fetch([transfer_of(NAME)]) == [FetchOutcome.HIT]
    assert files_in(tmp_path) == {NAME}


@pytest.mark.parametrize("names", [{"key": NAME.key}, {"tenant": NAME.tenant}], ids=["key", "tenant"])
def test_entry_stored_while_rows_are_erased_keeps_its_row(tmp_path: Path, names: dict[str, bytes]) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    assert store_rows(one, [NAME, name_of(2)]) == [True, True]
    do_before(one._index, "erase", lambda: store_rows(other, [NAME, name_of(1, 9)]))
    assert one.erase(**names) >= 1
    check_rows(tmp_path)


def test_entry_stored_during_a_sweep_keeps_its_row(tmp_path: Path) -> None:
    one = opened(tmp_path)
    assert store_rows(one, [NAME]) == [True]
    one.close()
    tmp_path.joinpath("entries", *place_of(NAME)).unlink()
    one, other = opened(tmp_path), opened(tmp_path)
    other._sweep.step()  # of the other process: it has nothing left to do
    assert store_rows(other, [NAME]) == [True]
    tmp_path.joinpath("entries", *place_of(NAME)).unlink()
    do_before(one._index, "remove", lambda: store_rows(other, [NAME]))
    assert store_rows(one, [name_of(2)]) == [True]
    check_rows(tmp_path)
    assert NAME in files_in(tmp_path)


def test_file_of_another_process_stays_if_the_index_refuses_its_row(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    assert store_rows(one, [NAME]) == [True]

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    other._index.insert = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store_rows(other, [NAME])
    assert one.fetch([transfer_of(NAME)]) == [FetchOutcome.HIT]
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store_rows(other, [name_of(2)])
    assert files_in(tmp_path) == {NAME}  # its own file has no row, so it leaves


def test_entries_of_a_clock_that_was_wrong_are_evicted(tmp_path: Path, monkeypatch: Any) -> None:
    tier = opened(tmp_path, 1 << 20)
    names = [name_of(key, 1, 200_000) for key in range(9)]
    assert file_bytes(names[0]) * 5 <= 1 << 20
    now = [time.time_ns() + 10 * YEAR_NS]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    assert store_rows(tier, names[:5]) == [True] * 5
    now[0] -= 10 * YEAR_NS
    for name in names[5:]:
        now[0] += 1
        assert store_rows(tier, [name]) == [True]
    assert set(names[6:]) <= files_in(tmp_path)


def test_claim_of_a_clock_that_was_wrong_ends(tmp_path: Path, monkeypatch: Any) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    now = [time.time() + 1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    assert one.claim([NAME], 60.0) == [True]
    assert other.claim([NAME], 60.0) == [False]
    now[0] -= 1e9
    assert other.claim([NAME], 60.0) == [True]


def test_refusals_for_one_reason_are_logged_once(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    tier = opened(tmp_path)
    open_file = os.open

    def refuse(path: str, *arguments: Any, **options: Any) -> int:
        if str(path).endswith(".part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with caplog.at_level(logging.WARNING):
        assert store_rows(tier, [name_of(key) for key in range(20)]) == [False] * 20
    assert len(caplog.records) == 1
    assert len(tier._counts) == 1


def test_child_does_not_close_the_index_of_its_parent(tmp_path: Path) -> None:
    """SQLite may be in the middle of a call at the fork, with a lock that stays locked in the child."""
    tier = opened(tmp_path)
    of_parent = weakref.ref(tier._index)
    tier._pid += 1  # as in a child
    tier.open()
    gc.collect()
    index = of_parent()
    assert index is not None
    assert index is not tier._index
    assert index.is_current
    tier.close()
