"""Reads and stores of the bench `tiers`: a `DiskTier` and direct I/O of the same bytes, in turns."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vitcache import DiskTier, EmbeddingCache, WriteBack
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer, gb_per_s
from vitcache.tiers import FetchOutcome, Transfer
from vitcache.tiers.header import BLOCK_BYTES, name_at

RAW, RAW_TWO, TIER, CACHE = "O_DIRECT", "O_DIRECT, two threads", "DiskTier", "cache.fetch"
LEAST_SHARE = 0.9  # of the throughput of direct I/O
WEIGHTS = "bench"
_WAIT_S = 60.0


@dataclass(frozen=True)
class ReadCase:
    """`entries` entries of `rows` rows of `width` bfloat16 elements."""

    entries: int
    rows: int
    width: int
    is_judged: bool = False

    @property
    def entry_bytes(self) -> int:
        """Bytes of the rows of one entry."""
        return 2 * self.rows * self.width

    @property
    def name(self) -> str:
        """The number of entries, and the bytes of each."""
        return f"{self.entries} x {self.entry_bytes / 1e6:.3g} MB"

    @property
    def keys(self) -> list[bytes]:
        """The keys of the entries."""
        return [number.to_bytes(32, "big") for number in range(self.entries)]


def run_reads(case: ReadCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure fetches and stores; yields a label before each part."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        second = stack.enter_context(ThreadPoolExecutor(1))
        yield "filling"
        root = Path(folder)
        rows = torch.randn(case.entries, case.rows, case.width).to(torch.bfloat16)
        fill(case, root / "tier", rows)
        expected = rows.view(torch.uint8).view(-1).numpy()
        memory = aligned(expected.nbytes)
        parts = np.split(memory, case.entries)
        paths, transfers = find(root / "tier", parts, case.keys)
        tier = DiskTier(root / "tier", "1TiB")
        tier.open()
        stack.callback(tier.close)
        cache = stack.enter_context(open_cache(case, root / "tier"))
        raw = RawFiles(paths, parts, second)
        if case.is_judged and not tier.metrics()["direct"] * raw.is_direct:
            raise RuntimeError(f"the file system of {folder} refuses direct I/O; set TMPDIR to another one")
        fetches: dict[str, Callable[[], object]] = {
            RAW: raw.read,
            RAW_TWO: raw.read_by_two,
            TIER: lambda: expect_all(tier.fetch(transfers)),
            CACHE: lambda: expect_all(cache.fetch(case.keys, case.rows, timeout_s=_WAIT_S)),
        }
        for name, fetch in fetches.items():
            memory.fill(0xEE)
            fetch()
            if name == CACHE:
                check_rows(cache, case, rows)
            elif not np.array_equal(memory, expected):
                raise RuntimeError(f"{name} read other bytes than were stored: it gets no number")
        yield "fetches in turns"
        before: dict[str, Callable[[], object]] = {name: lambda: None for name in fetches}
        before[CACHE] = lambda: [cache.discard(key, tier="host") for key in case.keys]
        samples = timer.rounds_us(fetches, before=before)
        add(case, recorder, "fetch_gb_per_s", {n: gb_per_s(s, memory.nbytes) for n, s in samples.items()})
        yield "stores in turns"
        few = timer.with_repeats(max(3, timer.repeats // 4))
        stores: dict[str, Callable[[], object]] = {
            RAW: lambda: raw.write(root),
            TIER: lambda: expect_all(tier.store(transfers)),
        }
        before = {
            RAW: lambda: raw.remove(root),
            TIER: lambda: [tier.erase(key=key) for key in case.keys],
        }
        samples = few.rounds_us(stores, before=before)
        expect_all(tier.fetch(transfers))
        if not np.array_equal(memory, expected) or not np.array_equal(raw.written(root), expected):
            raise RuntimeError("a store wrote other bytes than it was given: it gets no number")
        add(case, recorder, "store_gb_per_s", {n: gb_per_s(s, memory.nbytes) for n, s in samples.items()})


def add(case: ReadCase, recorder: Recorder, metric: str, rates: dict[str, Sample]) -> None:
    """Record rates. The fetch of the tier has a target: a share of the rate of direct I/O."""
    for name, rate in rates.items():
        is_judged = case.is_judged and name == TIER and metric == "fetch_gb_per_s"
        recorder.add(
            *(case.name, name, metric, "GB/s", rate),
            bytes_moved=case.entries * case.entry_bytes,
            against=(RAW, rates[RAW].value),
            target=LEAST_SHARE if is_judged else None,
            limit=LEAST_SHARE * rates[RAW].value if is_judged else None,
            at_least=True,
        )


def open_cache(case: ReadCase, folder: Path) -> EmbeddingCache:
    """Return a cache with a disk tier, whose host tier has four times the bytes of the entries."""
    size = case.entries * case.entry_bytes
    return EmbeddingCache(
        case.width,
        device="cpu",
        device_bytes=max(size, 1 << 20),
        host_bytes=4 * max(size, 1 << 20),
        tiers=[DiskTier(folder, "1TiB")],
        weights_name=WEIGHTS,
        write_back=WriteBack(hits=0, queue_bytes="1TiB"),
    )


def fill(case: ReadCase, folder: Path, rows: torch.Tensor) -> None:
    """Store the rows through a cache, as an application does."""
    with open_cache(case, folder) as cache:
        for key, values in zip(case.keys, rows, strict=True):
            cache.put(key, values)
        if not cache.flush(_WAIT_S) or cache.stats().tiers[0].stored != case.entries:
            raise RuntimeError("the disk tier has not stored the entries: it gets no number")


def find(folder: Path, parts: Sequence[np.ndarray], keys: list[bytes]) -> tuple[list[Path], list[Transfer]]:
    """Return the files of the entries and their transfers, in the order of the keys."""
    found = {}
    for path in (folder / "entries").glob("*/*/*"):
        name = name_at(path.parents[1].name, path.name)
        if name is not None:
            found[name.key] = path, name
    ordered = [found[key] for key in keys]
    transfers = [Transfer(name, [part]) for (_, name), part in zip(ordered, parts, strict=True)]
    return [path for path, _ in ordered], transfers


def check_rows(cache: EmbeddingCache, case: ReadCase, rows: torch.Tensor) -> None:
    """Raise unless the cache has the rows, bit for bit."""
    for key, values in zip(case.keys, rows, strict=True):
        lease = cache.get(key, num_rows=case.rows)
        if lease is None or not torch.equal(torch.cat(list(lease.segments())), values):
            raise RuntimeError("cache.fetch gave other rows than were stored: it gets no number")
        lease.release()


def expect_all(outcomes: Sequence[object]) -> None:
    """Raise unless each entry was found or stored."""
    if not all(outcome is True or outcome is FetchOutcome.HIT for outcome in outcomes):
        raise RuntimeError(f"expected hits and stores only, got {outcomes}: it gets no number")


def aligned(num_bytes: int) -> np.ndarray:
    """Return bytes that begin at a page."""
    return np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)


class RawFiles:
    """Direct reads and writes of the rows of entries, without headers and checksums.

    `is_direct` is False if the file system refuses direct I/O: then the page cache is used.
    """

    def __init__(self, paths: list[Path], parts: Sequence[np.ndarray], second: ThreadPoolExecutor) -> None:
        self._paths, self._parts, self._second = paths, parts, second
        self.is_direct = True
        try:
            os.close(os.open(paths[0], os.O_RDONLY | os.O_DIRECT))
        except OSError:
            self.is_direct = False

    def _open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | (os.O_DIRECT if self.is_direct else 0), 0o600)

    def read(self) -> None:
        """Read all entries, each with as few calls as the system allows."""
        for path, part in zip(self._paths, self._parts, strict=True):
            self._read(path, [(0, part)])

    def read_by_two(self) -> None:
        """Read a half of each entry on another thread."""
        halves = [-(-part.nbytes // 2 // BLOCK_BYTES) * BLOCK_BYTES for part in self._parts]

        def read(is_second: bool) -> None:
            for path, part, half in zip(self._paths, self._parts, halves, strict=True):
                self._read(path, [(half, part[half:]) if is_second else (0, part[:half])])

        other = self._second.submit(read, True)
        read(False)
        other.result()

    def _read(self, path: Path, pieces: list[tuple[int, np.ndarray]]) -> None:
        fd = self._open(path, os.O_RDONLY)
        try:
            for offset, memory in pieces:
                at = 0
                while at < memory.nbytes:
                    at += os.preadv(fd, [memory[at:].data], BLOCK_BYTES + offset + at)
        finally:
            os.close(fd)

    def write(self, folder: Path) -> None:
        """Write a new file for each entry."""
        for number, part in enumerate(self._parts):
            fd = self._open(folder / f"raw-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                at = 0
                while at < part.nbytes:
                    at += os.pwritev(fd, [part[at:].data], at)
            finally:
                os.close(fd)

    def remove(self, folder: Path) -> None:
        """Remove the files that `write` made."""
        for path in folder.glob("raw-*"):
            path.unlink()

    def written(self, folder: Path) -> np.ndarray:
        """Return the bytes of the files that `write` made."""
        files = [(folder / f"raw-{number}").read_bytes() for number in range(len(self._parts))]
        return np.frombuffer(b"".join(files), np.uint8)
