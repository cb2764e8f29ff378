"""A disk that is full, read-only, slow to complete or without direct I/O: stores fail, fetches work."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hang_guard import run_in_child
from tiers.scene import Pages, name_of, rows_in, rows_of, store_rows, transfer_of

from vitcache.tiers import DiskTier, FetchOutcome, Transfer
from vitcache.tiers.blocks import allocate_buffers
from vitcache.tiers.entry_read import EntryRead

HIT, MISS, DAMAGED = FetchOutcome.HIT, FetchOutcome.MISS, FetchOutcome.DAMAGED
SMALL, LARGE = name_of(1), name_of(2, 100, 4096)
OS = "vitcache.tiers.entry_files.os"


def raiser(number: int) -> Callable[..., Any]:
    """A function that raises an OSError."""

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def fetch(tier: DiskTier, *names: Any) -> list[FetchOutcome]:
    fetches = [transfer_of(name) for name in names]
    outcomes = tier.fetch(fetches)
    for each, outcome in zip(fetches, outcomes, strict=True):
        if outcome is HIT:
            assert np.array_equal(rows_in(each), rows_of(each.name))
    return outcomes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["pwritev", "rename", "open"])
def test_disk_that_refuses_a_write_stores_false_and_keeps_all_entries(
    tier: DiskTier,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    call: str,
) -> None:
    store_rows(tier, [SMALL])
    real = os.open
    with monkeypatch.context() as patch:
        if call == "open":

            def no_new_file(path: str, flags: int, *rest: Any, **options: Any) -> int:
                return raiser(number)() if flags & os.O_CREAT else real(path, flags, *rest, **options)

            patch.setattr(f"{OS}.open", no_new_file)
        else:
            patch.setattr(f"{OS}.{call}", raiser(number))
        with caplog.at_level(logging.WARNING, "vitcache.tiers"):
            assert store_rows(tier, [LARGE, name_of(3)]) == [False, False]
        assert len(caplog.records) == 1
        assert fetch(tier, SMALL, LARGE) == [HIT, MISS]
        assert list((root / "tmp").iterdir()) == []
        assert tier.metrics()["entries"] == 1
    assert store_rows(tier, [LARGE]) == [True]
    assert fetch(tier, SMALL, LARGE) == [HIT, HIT]


def test_disk_that_becomes_full_in_the_middle_of_a_file_stores_false(
    tier: DiskTier, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_rows(tier, [SMALL])
    real, sizes = os.pwritev, iter([8192])

    def write_some(fd: int, views: Any, offset: int) -> int:
        size = next(sizes, 0)  # as for a disk with two free blocks
        return real(fd, [views[0][:size]], offset) if size else raiser(errno.ENOSPC)()

    monkeypatch.setattr(f"{OS}.pwritev", write_some)
    assert store_rows(tier, [LARGE]) == [False]
    assert list((root / "tmp").iterdir()) == []
    assert fetch(tier, SMALL, LARGE) == [HIT, MISS]


def test_file_size_limit_of_the_process_stores_false(root: Path) -> None:
    def check() -> None:
        tier = DiskTier(root, 8 << 20)
        tier.open()
        store_rows(tier, [SMALL])
        resource.setrlimit(resource.RLIMIT_FSIZE, (200 << 10, 200 << 10))
        assert store_rows(tier, [LARGE, name_of(3)]) == [False, True]
        assert fetch(tier, SMALL, LARGE, name_of(3)) == [HIT, MISS, HIT]
        assert list((root / "tmp").iterdir()) == []
        tier.close()

    assert run_in_child(check) == 0


def test_full_disk_of_the_index_stores_false(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    store_rows(tier, [SMALL])

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(tier._index, "insert", full)
        assert store_rows(tier, [LARGE]) == [False]
    assert fetch(tier, SMALL, LARGE) == [HIT, MISS]


def test_folder_without_write_permission_serves_fetches_and_stores_false() -> None:
    """As an ordinary user: the permissions do not bind a superuser."""
    user = os.geteuid() or 65534
    folder = Path(tempfile.mkdtemp())  # `tmp_path` is below a folder that only the superuser may search
    os.chown(folder, user, -1)

    def set_modes(of_folders: int, of_index: int) -> None:
        for path, _, _ in os.walk(folder):
            os.chmod(path, of_folders)
        os.chmod(folder / "vitcache-index.db", of_index)

    def check() -> None:
        if os.geteuid() == 0:
            os.setresuid(user, user, user)
        tier = DiskTier(folder, 8 << 20)
        tier.open()
        assert store_rows(tier, [SMALL, LARGE]) == [True, True]
        tier.close()
        set_modes(0o500, 0o400)
        tier.open()
        assert tier.exists([SMALL, LARGE, name_of(3)]) == [True, True, False]
        assert store_rows(tier, [name_of(3)]) == [False]
        assert fetch(tier, SMALL, LARGE, name_of(3)) == [HIT, HIT, MISS]
        with pytest.raises(PermissionError):
            tier.erase(key=SMALL.key)
        with pytest.raises(PermissionError):
            tier.revoke(SMALL.weights)
        tier.close()

    try:
        assert run_in_child(check) == 0
    finally:
        set_modes(0o700, 0o600)
        shutil.rmtree(folder)


def test_error_that_is_not_a_full_disk_is_raised(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    store_rows(tier, [SMALL])
    with monkeypatch.context() as patch:
        patch.setattr(f"{OS}.pwritev", raiser(errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            store_rows(tier, [LARGE])
    with monkeypatch.context() as patch:
        patch.setattr("vitcache.tiers.entry_read.os.preadv", raiser(errno.EIO))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            fetch(tier, SMALL)
    assert fetch(tier, SMALL) == [MISS]  # its sectors are not read again
    assert tier.metrics()["entries"] == 0


def test_first_error_of_an_entry_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    read = EntryRead(0, transfer_of(LARGE), allocate_buffers(1)[0])

    def fail_after_another_thread(*_: Any) -> None:
        read.failed = OSError(errno.EIO, "first")
        raise OSError(errno.ENXIO, "second")

    monkeypatch.setattr("vitcache.tiers.entry_read.os.preadv", fail_after_another_thread)
    read.run(range(1))
    assert getattr(read.failed, "errno", 0) == errno.EIO


def test_short_reads_and_writes_are_continued(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev
    monkeypatch.setattr(
        "vitcache.tiers.entry_read.os.preadv",
        lambda fd, views, offset: real_read(fd, [views[0][:4096]], offset),
    )
    monkeypatch.setattr(f"{OS}.pwritev", lambda fd, views, offset: real_write(fd, [views[0][:4096]], offset))
    odd = name_of(4, 33, 999)
    assert store_rows(tier, [LARGE, odd]) == [True, True]
    assert fetch(tier, LARGE, odd) == [HIT, HIT]


@pytest.mark.parametrize("when", ["open", "transfer"])
def test_file_system_without_direct_io_is_used_through_its_cache(
    root: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    real_open, real_read, real_write = os.open, os.preadv, os.pwritev
    direct: set[int] = set()

    def open_file(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_DIRECT and when == "open":
            raise OSError(errno.EINVAL, "no direct I/O")
        return real_open(path, flags, *rest, **options)

    def is_direct(fd: int) -> bool:
        import fcntl

        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)

    def transfer(real: Any) -> Callable[..., int]:
        def call(fd: int, views: Any, offset: int) -> int:
            if is_direct(fd):
                direct.add(fd)
                raise OSError(errno.EINVAL, "no direct I/O")
            return real(fd, views, offset)

        return call

    tier = DiskTier(root, 8 << 20)
    tier.open()
    if not tier.metrics()["direct"]:
        pytest.skip("this system has no direct I/O")
    store_rows(tier, [LARGE])
    monkeypatch.setattr(f"{OS}.open", open_file)
    monkeypatch.setattr("vitcache.tiers.entry_read.os.preadv", transfer(real_read))
    monkeypatch.setattr(f"{OS}.pwritev", transfer(real_write))
    other = name_of(5, 600, 4096)
    assert fetch(tier, LARGE) == [HIT]
    assert tier.metrics()["direct"] == 0
    tier.close()
    tier.open()
    assert store_rows(tier, [other]) == [True]
    assert tier.metrics()["direct"] == 0
    assert fetch(tier, LARGE, other) == [HIT, HIT]
    assert bool(direct) == (when == "transfer")
    tier.close()


def test_memory_that_direct_io_refuses_does_not_end_direct_io_of_the_tier(tier: DiskTier) -> None:
    if not tier.metrics()["direct"]:
        pytest.skip("this system has no direct I/O")
    for offset, page_bytes in ((0, 4096), (64, 4096), (0, 5000)):
        name = name_of(offset + page_bytes, 1, 40_000)
        source = Pages(40_000, page_bytes, offset=offset)
        target = Pages(40_000, page_bytes, offset=offset, seed=1)
        source.fill(rows_of(name))
        assert tier.store([Transfer(name, source.parts)]) == [True]
        assert tier.fetch([Transfer(name, target.parts)]) == [HIT]
        assert np.array_equal(target.rows(), rows_of(name))
    assert tier.metrics()["direct"] == 1


def test_rows_of_other_entries_are_never_written(tier: DiskTier, root: Path) -> None:
    secret = b"another tenant's rows"
    pages = Pages(10_000, 4096)
    pages.memory[:] = np.frombuffer((secret * (pages.memory.size // len(secret) + 1)), np.uint8)[
        : pages.memory.size
    ]
    for part in pages.parts:
        part[:] = 0
    assert tier.store([Transfer(name_of(1, 1, 10_000), pages.parts)]) == [True]
    tier.close()
    for path in root.rglob("*"):
        assert path.is_dir() or b"tenant's" not in path.read_bytes()
    tier.open()


def test_arguments_are_checked(tmp_path: Path) -> None:
    for path in (None, b"bytes", 5):
        with pytest.raises(TypeError, match="path must be a str"):
            DiskTier(path, "1GiB")  # type: ignore[arg-type]
    for path in ("", "a\0b"):
        with pytest.raises(ValueError, match="path is"):
            DiskTier(path, "1GiB")
    with pytest.raises(ValueError, match="max_bytes"):
        DiskTier(tmp_path, (1 << 20) - 1)
    with pytest.raises(TypeError, match="max_bytes"):
        DiskTier(tmp_path, 1e9)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="direct must be a bool"):
        DiskTier(tmp_path, 1 << 30, direct=1)  # type: ignore[arg-type]
    tier = DiskTier(tmp_path / "new", "1GiB")
    assert tier.capacity_bytes == 1 << 30
    assert not (tmp_path / "new").exists()  # until `open`
