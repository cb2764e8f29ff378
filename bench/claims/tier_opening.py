"""The folder of a disk tier with many entries: how long `open` and `exists` take."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitcache import DiskTier
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer
from vitcache.tiers import EntryName, Transfer
from vitcache.tiers.disk_index import DiskIndex
from vitcache.tiers.header import file_bytes, pack_name, place_of

OPENED, EXISTS, STATS = "DiskTier.open", "DiskTier.exists", "os.stat"
ASKED = 32
TARGET_US = {"open_us": 10_000.0, "exists_us": 500.0}
_ROW_BYTES = 1024


@dataclass(frozen=True)
class OpenCase:
    """A folder with `entries` entries."""

    entries: int
    is_judged: bool = False

    @property
    def name(self) -> str:
        """The number of entries."""
        return f"{self.entries:,} entries"


def run_opening(case: OpenCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        yield "filling"
        names = fill(case, Path(folder) / "tier")
        asked, unknown = names[:: len(names) // ASKED][:ASKED], [_name(-1 - n) for n in range(ASKED)]
        tier = DiskTier(Path(folder) / "tier", "1TiB")
        stack.callback(tier.close)
        yield "opens"
        [opened] = timer.rounds_us({OPENED: tier.open}, before={OPENED: tier.close}).values()
        if tier.metrics()["entries"] != case.entries:
            raise RuntimeError("the tier was opened without its entries: it gets no number")
        if tier.exists(asked) != [True] * ASKED or any(tier.exists(unknown)):
            raise RuntimeError("the tier does not know which entries it has: it gets no number")
        paths = [Path(folder, "tier", "entries", *place_of(name)) for name in asked]
        yield "exists in turns"
        calls: dict[str, Callable[[], object]] = {
            EXISTS: lambda: tier.exists(asked),
            STATS: lambda: [os.stat(path) for path in paths],
        }
        samples = timer.rounds_us(calls, calls=3)
    for name, metric, sample, reference in (
        (OPENED, "open_us", opened, None),
        (EXISTS, "exists_us", samples[EXISTS], (STATS, samples[STATS].value)),
        (STATS, "exists_us", samples[STATS], None),
    ):
        target = TARGET_US[metric] if case.is_judged and name != STATS else None
        recorder.add(*(case.name, name, metric, "us", sample), against=reference, target=target, limit=target)


def fill(case: OpenCase, folder: Path) -> list[EntryName]:
    """Make a folder with as many entries: one was stored, the files of the rest have their size and no rows.

    Neither `open` nor `exists` reads a file of an entry.
    """
    names = [_name(number) for number in range(case.entries)]
    tier = DiskTier(folder, "1TiB")
    tier.open()
    tier.store([Transfer(names[0], [np.zeros(_ROW_BYTES, np.uint8)])])
    tier.close()
    index, size = DiskIndex(str(folder)), file_bytes(names[0])
    index.open()
    index.insert((pack_name(name), size, number) for number, name in enumerate(names[1:]))
    index.close()
    for name in names[1:]:
        path = Path(folder, "entries", *place_of(name))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(0o600)
        os.truncate(path, size)
    return names


def _name(number: int) -> EntryName:
    key = hashlib.sha256(str(number).encode()).digest()
    return EntryName(bytes(32), bytes(32), key, 1, _ROW_BYTES)
