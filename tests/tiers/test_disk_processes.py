"""Several processes on one folder, and processes that are killed while they write."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hang_guard import SECONDS, end_if_it_hangs, run_in_child
from tiers import writer
from tiers.scene import name_of, rows_in, rows_of, store_rows, transfer_of

from vitcache.tiers import DiskTier, FetchOutcome

HIT, MISS = FetchOutcome.HIT, FetchOutcome.MISS
KILLS, ROW_BYTES = 20, 30_000


@contextmanager
def writing(root: Path, *arguments: int) -> Iterator[subprocess.Popen[str]]:
    """Run a process that writes. The block begins after it has opened the tier."""
    command = [sys.executable, writer.__file__, str(root), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


def all_names() -> list[object]:
    return [name_of(key, num_rows, ROW_BYTES) for key in range(writer.NUM_KEYS) for num_rows in (1, 2, 3)]


def check_rows(tier: DiskTier) -> int:
    """Fetch every entry that a writer may have stored; return the number of hits."""
    fetches = [transfer_of(name) for name in all_names()]  # type: ignore[arg-type]
    outcomes = tier.fetch(fetches)
    for fetch, outcome in zip(fetches, outcomes, strict=True):
        assert outcome in (HIT, MISS)  # a file is complete or absent
        if outcome is HIT:
            assert np.array_equal(rows_in(fetch), rows_of(fetch.name))
    return outcomes.count(HIT)


def fork(call: Callable[[], object]) -> int:
    """Call in a forked child, which writes no output. Return its process id."""
    pid = os.fork()
    if pid == 0:
        end_if_it_hangs(SECONDS)
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            call()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def fork_writer(root: Path, seed: int) -> int:
    """Fork a child that writes until it is killed."""
    return fork(lambda: writer.write(str(root), 2 << 20, seed, 0, ROW_BYTES))


def test_kill_of_a_writer_at_any_moment_leaves_no_wrong_row(root: Path) -> None:
    rng = random.Random(0)
    hits = 0
    tier = DiskTier(root, 2 << 20)
    for kill in range(KILLS):
        pids = [fork_writer(root, 2 * kill), fork_writer(root, 2 * kill + 1)]
        tier.open()
        # This process reads a random number of times while they write.
        for _ in range(rng.randrange(1, 8)):
            hits += check_rows(tier)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        hits += check_rows(tier)
        tier.close()
    assert hits > KILLS
    tier.open()
    while not tier._sweep.is_done:
        store_rows(tier, [name_of(1000)])
    assert list((root / "tmp").iterdir()) == []
    files = [path for path in (root / "entries").rglob("*") if path.is_file()]
    metrics = tier.metrics()
    assert metrics["entries"] == len(files)
    assert metrics["bytes"] == sum(path.stat().st_size for path in files) <= 2 << 20
    assert metrics["damaged"] == metrics["rebuilt"] == 0
    tier.close()


def used_bytes(root: Path) -> int:
    used = 0
    for folder, _, files in os.walk(root / "entries"):
        for file in files:
            with suppress(FileNotFoundError):
                used += os.stat(f"{folder}/{file}").st_size
    return used


def test_two_writers_exceed_the_limit_by_one_entry_each_at_most(root: Path) -> None:
    limit, num_entries = 1 << 20, 180
    entry = 4096 + -(-3 * ROW_BYTES // 4096) * 4096
    largest = 0
    with (
        writing(root, limit, 1, num_entries, ROW_BYTES) as first,
        writing(root, limit, 2, num_entries, ROW_BYTES) as second,
    ):
        for process in (first, second) * (num_entries // 3):
            assert process.stdout is not None
            assert process.stdout.readline() == "stored\n"
            largest = max(largest, used_bytes(root))
        assert [first.wait(60), second.wait(60)] == [0, 0]
    assert limit // 2 < largest <= limit + 2 * entry
    tier = DiskTier(root, limit)
    tier.open()
    files = [path for path in (root / "entries").rglob("*") if path.is_file()]
    assert tier.metrics()["bytes"] == sum(path.stat().st_size for path in files) <= limit + 2 * entry
    assert tier.metrics()["entries"] == len(files)
    tier.close()


def test_claim_of_one_process_is_refused_to_another_until_it_expires(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = DiskTier(root, 1 << 20), DiskTier(root, 1 << 20)
    first.open()
    second.open()
    now = 1000.0
    monkeypatch.setattr("vitcache.tiers.disk_tier.time.time", lambda: now)
    names = [name_of(1), name_of(2)]
    assert first.claim(names, 10.0) == [True, True]
    assert first.claim(names, 10.0) == [True, True]
    assert second.claim(names, 10.0) == [False, False]
    now = 1009.9
    assert second.claim([*names, name_of(3)], 10.0) == [False, False, True]
    now = 1010.0  # the first process may have ended
    assert second.claim(names, 10.0) == [True, True]
    assert first.claim(names, 10.0) == [False, False]
    assert store_rows(second, names[:1]) == [True]
    assert first.claim(names, 10.0) == [False, False]
    assert store_rows(second, [names[1]._replace(num_rows=1 << 20, row_bytes=2)]) == [False]
    first.close()
    second.close()


def test_claim_ends_when_its_owner_cannot_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = DiskTier(root, 1 << 20), DiskTier(root, 1 << 20)
    first.open()
    second.open()
    assert first.claim([name_of(1)], 60.0) == [True]
    with monkeypatch.context() as patch:
        patch.setattr("vitcache.tiers.entry_files.os.pwritev", refuse)
        assert store_rows(first, [name_of(1)]) == [False]
    assert second.claim([name_of(1)], 60.0) == [True]
    first.close()
    second.close()


def refuse(*_: object) -> int:
    raise OSError(28, "No space left on device")


def test_revocations_of_several_processes_all_count(root: Path) -> None:
    tier = DiskTier(root, 1 << 20)
    tier.open()
    weights = bytes([5]) * 32

    def revoke() -> None:
        other = DiskTier(root, 1 << 20)
        other.open()
        for _ in range(20):
            other.revoke(weights)
        other.close()

    children = [fork(revoke) for _ in range(3)]
    revoke()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    assert tier.generation(weights) == 80
    tier.close()


def test_tier_of_a_parent_is_refused_in_a_forked_child(root: Path) -> None:
    tier = DiskTier(root, 1 << 20)
    tier.open()
    store_rows(tier, [name_of(1)])

    def check() -> None:
        with pytest.raises(RuntimeError, match=f"open in process {os.getppid()}, not in this one"):
            tier.exists([name_of(1)])
        tier.close()
        other = DiskTier(root, 1 << 20)
        other.open()
        assert other.fetch([transfer_of(name_of(1))]) == [HIT]
        assert store_rows(other, [name_of(2)]) == [True]
        other.close()

    assert run_in_child(check) == 0
    assert tier.fetch([transfer_of(name_of(2))]) == [HIT]
    assert tier.metrics()["entries"] == 2
    tier.close()
