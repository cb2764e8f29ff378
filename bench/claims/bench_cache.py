"""Claim: the cache's own work is short compared with an encode, for any number of entries.

Three operations are measured for several numbers of entries: a look-up (`get`) and its release, also for
several numbers of threads; a key of a look-up of many keys (`get_many`), and its release; and a miss with its
put and an eviction. Each entry has one row of one element, so the time is that of the ledger and not of
copies.

One more case uses the model and the image size of ``vitcache demo``. It compares the time of a miss and its
put, the copy of the rows included, with the time of the image's encode. This bench always runs on the CPU,
as the ledger does.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vitcache import EmbeddingCache
from vitcache.bench.chats.chat import Chat, Tower, image_key, load_model
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer, us_per_call

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "cache"
CLAIMS_CPU = True
DEVICE = torch.device("cpu")
# Targets of the design: microseconds of a look-up and its release with 100,000 entries; without hits, the
# cache's time as a share of the encode time.
LOOK_UP_US, JUDGED_ENTRIES = 1.5, 100_000
MISS_SHARE = 0.01
ENCODE_US = 27_000  # encode of one 1280x720 image, measured for the design on an H100
CALLS = 4_000  # per measurement, all threads together
MANY = 512  # keys of one call of `get_many`


@dataclass(frozen=True)
class CacheCase:
    """A cache that is full with `entries` entries, and the numbers of threads that use it together."""

    entries: int
    threads: tuple[int, ...]

    @property
    def name(self) -> str:
        """The number of entries."""
        return f"{self.entries} entries"


@dataclass(frozen=True)
class MainJobCase:
    """Images of ``grid`` patches, one after the other; each of them misses."""

    name: str
    grid: tuple[int, int, int]
    capacity: int  # images
    is_judged: bool = True


CASES: dict[str, list[Any]] = {
    "full": [
        CacheCase(1_000, (1, 2, 4, 8, 16)),
        CacheCase(10_000, (1,)),
        CacheCase(100_000, (1, 16)),
        CacheCase(1_000_000, (1,)),
        MainJobCase("main job, 121 rows", (1, 22, 22), capacity=50),
    ],
    "smoke": [
        CacheCase(50, (1, 2)),
        MainJobCase("main job, 4 rows", (1, 4, 4), capacity=5, is_judged=False),
    ],
}


def run_case(case: Any, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    run = {CacheCase: run_ledger, MainJobCase: run_main_job}[type(case)]
    yield from run(case, recorder, timer)


def run_main_job(case: MainJobCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure the encode of one image, and the cache's work for an image that misses."""
    yield "building the model"
    model = load_model("tiny", DEVICE)
    chat, tower = Chat(model, case.grid, 1), Tower(model)
    rows = tower(chat.features, chat.items)
    cache = EmbeddingCache(
        rows.shape[1], dtype=rows.dtype, device=DEVICE, device_bytes=chat.page_bytes(case.capacity)
    )
    new_keys = (image_key(number) for number in itertools.count())

    def miss() -> None:
        key = next(new_keys)
        if cache.get(key, num_rows=len(rows)) is not None:
            raise RuntimeError("expected a miss, got a hit on a key that was never put: it gets no number")
        with cache.claim(key):
            cache.put(key, rows)

    for _ in range(case.capacity):
        miss()
    yield "encode and miss, in turns"
    times = timer.rounds_us({"encode": lambda: tower(chat.features, chat.items), "miss, put, eviction": miss})
    if cache.stats().evictions == 0:
        raise RuntimeError("expected evictions, got 0: it gets no number")
    encode_us = times["encode"].value
    recorder.add(case.name, "encode", "host_us", "us", times["encode"])
    recorder.add(
        case.name,
        "miss, put, eviction",
        "host_us",
        "us",
        times["miss, put, eviction"],
        against=("encode", encode_us),
        target=MISS_SHARE if case.is_judged else None,
        limit=MISS_SHARE * encode_us if case.is_judged else None,
    )


def run_ledger(case: CacheCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure look-ups and misses of tiny entries, by the number of threads."""
    yield "filling"
    row = torch.zeros(1, 1)
    cache = EmbeddingCache(1, dtype=torch.float32, device=DEVICE, device_bytes=4 * case.entries, page_rows=1)
    keys = [os.urandom(32) for _ in range(case.entries)]
    for key in keys:
        cache.put(key, row)

    def look_up(key: bytes) -> None:
        lease = cache.get(key, num_rows=1)
        if lease is None:
            raise RuntimeError("expected a hit on a key that was put, got a miss: it gets no number")
        lease.release()

    def miss(key: bytes) -> None:
        if cache.get(key, num_rows=1) is not None:
            raise RuntimeError("expected a miss, got a hit on a key that was never put: it gets no number")
        with cache.claim(key):
            cache.put(key, row)

    for threads in case.threads:
        yield f"look-up, {threads} threads"
        sample = per_call_us(look_up, lambda: random.sample(keys, min(CALLS, len(keys))), threads, timer)
        judged = threads == 1 and case.entries == JUDGED_ENTRIES
        recorder.add(
            case.name,
            f"look-up, {threads} threads",
            "host_us",
            "us",
            sample,
            target=LOOK_UP_US if judged else None,
            limit=LOOK_UP_US if judged else None,
        )
    yield f"get_many, {MANY} keys"
    recorder.add(case.name, f"get_many, {MANY} keys", "host_us", "us", per_key_us(cache, keys, timer))
    yield "miss and put with an eviction"
    sample = per_call_us(miss, lambda: [os.urandom(32) for _ in range(CALLS // 4)], 1, timer)
    judged = case.entries == JUDGED_ENTRIES
    recorder.add(
        case.name,
        "miss, put, eviction",
        "host_us",
        "us",
        sample,
        against=("encode of 720p on an H100", ENCODE_US),
        target=MISS_SHARE if judged else None,
        limit=MISS_SHARE * ENCODE_US if judged else None,
    )
    cache.check_integrity()


def per_call_us(
    call: Callable[[bytes], None], make_keys: Callable[[], list[bytes]], threads: int, timer: Timer
) -> Sample:
    """Return the wall-clock microseconds per call: the time of all threads divided by all their calls."""
    repeats = max(3, timer.repeats // 5)
    return Sample.of([us_per_call(call, make_keys(), threads) for _ in range(repeats)])


def per_key_us(cache: Any, keys: list[bytes], timer: Timer) -> Sample:
    """Return the microseconds per key of `get_many` and the release of its leases."""
    values = []
    for _ in range(timer.repeats):
        some = random.sample(keys, min(MANY, len(keys)))
        begin = time.perf_counter()
        leases = cache.get_many(some, num_rows=1)
        for lease in leases:
            lease.release()
        values.append((time.perf_counter() - begin) / len(some) * 1e6)
    return Sample.of(values)


def draw(rows: figures.Rows) -> Figure:
    """Draw microseconds: a look-up and a miss over the entries, and a look-up over the threads."""
    by_entries = [(int(row["case"].split()[0]), row) for row in rows if row["case"].endswith(" entries")]
    looks = figures.styles(("look-up", "get_many, 512 keys", "miss, put, eviction"))
    figure, [[left, middle, right]] = figures.open_figure(columns=3, height=3.0)
    words = {"look-up": "look-up and release", "get_many, 512 keys": "get_many, 512 keys, by key"}
    for name, look in looks.items():
        wanted = "look-up, 1 threads" if name == "look-up" else name
        points = [(n, row) for n, row in by_entries if row["contender"] == wanted]
        figures.curve(middle if name.startswith("miss") else left, points, look, words.get(name, name))
    sizes = list(dict.fromkeys(n for n, _ in by_entries))
    threads = {
        size: [
            (int(row["contender"].split()[1]), row)
            for n, row in by_entries
            if n == size and row["contender"].startswith("look-up")
        ]
        for size in sizes
    }
    several = {f"look-up, {size:,} entries": points for size, points in threads.items() if len(points) > 1}
    looks = figures.styles((*looks, *several))
    for name, points in several.items():
        figures.curve(right, points, looks[name], name)
    if JUDGED_ENTRIES in sizes:
        label = f"target for {JUDGED_ENTRIES:,} entries: at most {LOOK_UP_US:g} us"
        left.plot(
            JUDGED_ENTRIES, LOOK_UP_US, "_", color="black", markersize=16, markeredgewidth=2, label=label
        )
    for axes in (left, middle):
        axes.set(xlabel="entries", xscale="log", ylim=(0, None))
        figures.plain_ticks(axes, sizes)
        axes.set_xticks(
            sizes, [f"{size / 1000:g}k" if size < 10**6 else f"{size / 10**6:g}M" for size in sizes]
        )
    right.set(xlabel="threads that look up", xscale="log", ylim=(0, None))
    figures.plain_ticks(right, sorted({x for points in several.values() for x, _ in points}))
    left.set(ylabel="microseconds", title="one thread looks up")
    middle.set(ylabel="microseconds", title="one thread misses")
    right.set(ylabel="microseconds per look-up", title="several threads look up")
    look_ups, misses = (
        [row for _, row in by_entries if row["contender"] == name]
        for name in ("look-up, 1 threads", "miss, put, eviction")
    )
    took = figures.span((row["value"] for row in look_ups), "{:.1f}")
    missed = figures.span((row["value"] for row in misses), "{:.0f}")
    title = f"A look-up takes {took} us, a miss with its put {missed} us, with up to {max(sizes):,} entries"
    shares = [row["ratio"] for row in misses if row["ratio"] is not None]
    note = f"Entries of one element. {figures.SPREAD}"
    if shares:
        note = (
            f"A miss takes {figures.span(100 * share for share in shares)} % of the encode of a 1280x720 "
            f"image on an H100, {ENCODE_US / 1e3:.3g} ms (target: {MISS_SHARE:.0%}). {note}"
        )
    return figures.finish(figure, rows, title, note)
