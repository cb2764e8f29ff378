"""Claim: with ``page_rows=1``, small items are encoded at most 1.15 times as often as without pages.

An entry occupies whole pages, so the last page of an entry has unused rows. The bench shows their share by
the rows of an entry and of a page, from the cache's own accounting. It then replays traffic with items of 1
to 9 rows through caches of equal bytes, with pages of 1, 16 and 64 rows, and counts the encodes. The
reference is an LRU cache in plain Python whose entries occupy exactly their rows. All counts are exact and
the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vitcache import EmbeddingCache
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.bench.traffic.small_items import MAX_ROWS, lru_encodes, make_small_items, total_rows
from vitcache.bench.traffic.traces import Access

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "pages"
CLAIMS_CPU = True
DEVICE = torch.device("cpu")
REFERENCE = "LRU by bytes"
JUDGED_PAGE_ROWS, MOST_ENCODES = 1, 1.15  # target of the design: encodes as a multiple of REFERENCE's
ROW_BYTES = torch.float32.itemsize  # rows of one element


@dataclass(frozen=True)
class WasteCase:
    """Entries of these numbers of rows, in pages of these numbers of rows."""

    num_rows: tuple[int, ...]
    page_rows: tuple[int, ...] = (1, 4, 16, 64)
    name: str = "unused rows"


@dataclass(frozen=True)
class EncodesCase:
    """Traffic of `length` accesses to `items` items; the cache has space for `share` of all their rows."""

    length: int
    items: int
    share: float
    page_rows: tuple[int, ...] = (1, 16, 64)
    is_judged: bool = True

    @property
    def name(self) -> str:
        """The size of the cache."""
        return f"{self.share:.0%} of all rows"


CASES: dict[str, list[WasteCase | EncodesCase]] = {
    "full": [
        WasteCase((1, 4, 9, 16, 17, 64, 256, 880, 3600)),
        *(EncodesCase(20_000, 2_000, share) for share in (0.05, 0.1, 0.2, 0.4)),
    ],
    "smoke": [WasteCase((1, 9, 17)), EncodesCase(300, 100, 0.4, is_judged=False)],
}


def run_case(case: WasteCase | EncodesCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    yield "replaying"
    if isinstance(case, WasteCase):
        add_waste(case, recorder)
    else:
        add_encodes(case, recorder)


def add_waste(case: WasteCase, recorder: Recorder) -> None:
    """Put one entry into a cache of each page size, and add the share of its rows that are unused."""
    for num_rows in case.num_rows:
        for page_rows in case.page_rows:
            with_space = -(-num_rows // page_rows) * page_rows
            cache = make_cache(with_space, page_rows)
            cache.put(bytes(32), torch.zeros(num_rows, 1))
            used = cache.stats().device_bytes // ROW_BYTES
            cache.close()
            share = Sample.of([1 - num_rows / used])
            recorder.add(f"{num_rows} rows", f"page_rows={page_rows}", "unused_share", "share", share)


def add_encodes(case: EncodesCase, recorder: Recorder) -> None:
    """Replay the traffic through each cache, and add its number of encodes."""
    trace = make_small_items(case.length, case.items)
    capacity_rows = max(int(case.share * total_rows(trace)), 64)
    reference = lru_encodes(trace, capacity_rows)
    counts = {f"page_rows={rows}": cache_encodes(trace, capacity_rows, rows) for rows in case.page_rows}
    for name, encodes in {REFERENCE: reference, **counts}.items():
        judged = case.is_judged and name == f"page_rows={JUDGED_PAGE_ROWS}"
        recorder.add(
            case.name,
            name,
            "encodes",
            "encodes",
            Sample.of([float(encodes)]),
            bytes_moved=capacity_rows * ROW_BYTES,
            against=(REFERENCE, reference),
            target=MOST_ENCODES if judged else None,
            limit=MOST_ENCODES * reference if judged else None,
        )


def cache_encodes(trace: Sequence[Access], capacity_rows: int, page_rows: int) -> int:
    """Return the number of misses of an `EmbeddingCache`; each of them is put."""
    cache = make_cache(capacity_rows, page_rows)
    rows, encodes = torch.zeros(MAX_ROWS, 1), 0
    for key, num_rows, _ in trace:
        lease = cache.get(key, num_rows=num_rows)
        if lease is None:
            encodes += 1
            cache.put(key, rows[:num_rows])
        else:
            lease.release()
    cache.check_integrity()
    cache.close()
    return encodes


def make_cache(capacity_rows: int, page_rows: int) -> EmbeddingCache:
    """Make a cache for `capacity_rows` rows, rounded down to whole pages."""
    return EmbeddingCache(
        1, dtype=torch.float32, device=DEVICE, device_bytes=capacity_rows * ROW_BYTES, page_rows=page_rows
    )


def draw(rows: figures.Rows) -> Figure:
    """Draw a line per page size: left, the unused share; right, the encodes as a multiple of REFERENCE's."""
    figure, [[left, right]] = figures.open_figure(columns=2, height=3.0)
    looks = figures.styles(("page_rows=1", REFERENCE, "page_rows=16", "page_rows=64", "page_rows=4"))
    names = {"page_rows=1": "pages of 1 row", REFERENCE: "LRU without pages (exact bytes)"}
    for axes, metric, field, scale in ((left, "unused_share", "value", 100), (right, "encodes", "ratio", 1)):
        chosen = [row for row in rows if row["metric"] == metric]
        for name, look in looks.items():
            points = [
                (row["case"].split()[0], scale * row[field]) for row in chosen if row["contender"] == name
            ]
            if not points:
                continue
            words = names.get(name, f"pages of {name.removeprefix('page_rows=')} rows")
            # The lines of pages of 1 row and of the reference lie on each other: the reference's is wider.
            under = (
                {"markersize": 11, "linewidth": 4, "zorder": 1.5} if name == REFERENCE else {"markersize": 6}
            )
            axes.plot(*zip(*points, strict=True), **look.curve(), **under, label=words)
    left.set(xlabel="rows of an entry", ylabel="unused rows of its pages (percent)", ylim=(-3, 103))
    right.set(xlabel="size of the cache, of all rows", ylabel="encodes / those of the LRU", ylim=(0, None))
    figures.target(right, MOST_ENCODES, f"target for pages of 1 row: {MOST_ENCODES:g}")
    small, large = (figures.values(rows, f"page_rows={n}", metric="encodes") for n in (JUDGED_PAGE_ROWS, 16))
    title = (
        f"With pages of 1 row, small items are encoded {figures.span(small)} times as often as without "
        f"pages; with pages of 16 rows, {figures.span(large)} times"
    )
    note = f"Right: traffic with items of 1 to {MAX_ROWS} rows. All counts are exact, alike on every machine."
    return figures.finish(figure, rows, title, note)
