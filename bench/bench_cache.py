"""Claim: the cache's own work is small beside an encode, whatever is in it.

A look-up with its release, and a miss with its put and an eviction, by number of entries and by threads that
do it at once. Entries are of one row of one element: what is measured is the books and not the copies. Always
on the CPU, as the books are.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from vitcache import EmbeddingCache
from vitcache.bench.record import Recorder
from vitcache.bench.timing import Sample, Timer

NAME = "cache"
CLAIMS_CPU = True
DEVICE = torch.device("cpu")
# Targets of the design: a look-up with 100,000 entries, and the cache beside the encode where nothing is hit.
LOOK_UP_US, JUDGED_ENTRIES = 3.0, 100_000
MISS_SHARE = 0.01
ENCODE_US = 27_000  # of one 1280x720 image by the design's measurements on an H100
CALLS = 4_000  # per measurement, on all threads together


@dataclass(frozen=True)
class CacheCase:
    """A cache that is full with so many entries, and who uses it at once."""

    entries: int
    threads: tuple[int, ...]

    @property
    def name(self) -> str:
        """The entries."""
        return f"{self.entries} entries"


CASES = {
    "full": [
        CacheCase(1_000, (1, 2, 4, 8, 16)),
        CacheCase(10_000, (1,)),
        CacheCase(100_000, (1, 16)),
        CacheCase(1_000_000, (1,)),
    ],
    "smoke": [CacheCase(50, (1, 2))],
}


def run_case(case: CacheCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields what it does next."""
    yield "filling"
    row = torch.zeros(1, 1)
    cache = EmbeddingCache(1, dtype=torch.float32, device=DEVICE, device_bytes=4 * case.entries, page_rows=1)
    keys = [os.urandom(32) for _ in range(case.entries)]
    for key in keys:
        cache.put(key, row)

    def look_up(key: bytes) -> None:
        lease = cache.get(key, num_rows=1)
        if lease is None:
            raise RuntimeError("an entry is gone: no number")
        lease.release()

    def miss(key: bytes) -> None:
        if cache.get(key, num_rows=1) is not None:
            raise RuntimeError("an entry is there that was never put: no number")
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
    """Microseconds of wall clock per call, all threads together."""
    values = []
    for _ in range(max(3, timer.repeats // 5)):
        keys = make_keys()
        start = threading.Barrier(threads + 1)

        def work(part: list[bytes], start: threading.Barrier = start) -> None:
            start.wait()
            for key in part:
                call(key)

        workers = [threading.Thread(target=work, args=(keys[n::threads],)) for n in range(threads)]
        for worker in workers:
            worker.start()
        begin = time.perf_counter()
        start.wait()
        for worker in workers:
            worker.join()
        values.append((time.perf_counter() - begin) / len(keys) * 1e6)
    return Sample.of(values)
