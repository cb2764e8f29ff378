"""Waits of the bench `tiers`: a caller past its deadline, and calls while the breaker of a tier is open."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vitcache import EmbeddingCache
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.tiers import EntryName, MemoryTier, Tier

FETCH, TIMED = "cache.fetch", "wait of a queue"
OPEN, WITHOUT = "begin_fetch, breaker open", "begin_fetch, no tier"
DEADLINE_S = 0.02
TARGET_US = {"past_deadline_us": 1000.0, "refused_us": 50.0}


@dataclass(frozen=True)
class WaitCase:
    """`keys` keys of a tier that hangs. `is_open`: its breaker is open; else each fetch waits in vain."""

    keys: int
    is_open: bool
    is_judged: bool = False

    @property
    def name(self) -> str:
        """The state of the tier, and the number of keys."""
        return f"{'breaker open' if self.is_open else 'tier hangs'}, {self.keys} keys"


class BlockedTier(MemoryTier):
    """A tier that hangs in `exists` until `release`, as an engine does whose server is silent."""

    name = "blocked"

    def __init__(self) -> None:
        super().__init__("1MiB")
        self._released = threading.Event()

    def exists(self, names: Sequence[EntryName]) -> list[bool]:
        """Wait for `release`."""
        self._released.wait()
        return super().exists(names)

    def release(self) -> None:
        """Let all calls return."""
        self._released.set()


def run_waits(case: WaitCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    yield "calls in turns"
    add_waits(
        case, recorder, measure_refusals(case, timer) if case.is_open else measure_deadlines(case, timer)
    )


def add_waits(case: WaitCase, recorder: Recorder, samples: dict[str, Sample]) -> None:
    """Record times past the deadline, or of refused calls."""
    metric = "refused_us" if case.is_open else "past_deadline_us"
    reference = WITHOUT if case.is_open else TIMED
    for name, sample in samples.items():
        target = TARGET_US[metric] if case.is_judged and name != reference else None
        recorder.add(
            *(case.name, name, metric, "us", sample),
            against=(reference, samples[reference].value),
            target=target,
            limit=target,
        )


def make_cache(*tiers: Tier) -> EmbeddingCache:
    """Return a small cache with these tiers."""
    return EmbeddingCache(
        4, device="cpu", device_bytes="64KiB", host_bytes="64KiB", tiers=tiers, fetch_timeout_s=DEADLINE_S
    )


def keys_of(case: WaitCase) -> list[bytes]:
    """Return keys that no tier has."""
    return [number.to_bytes(32, "big") for number in range(case.keys)]


def measure_deadlines(case: WaitCase, timer: Timer) -> dict[str, Sample]:
    """Return the microseconds past the deadline of a fetch, and of a plain wait of the same length."""
    keys, past, plain = keys_of(case), [], []
    for done in range(timer.repeats + 2):
        timer.on_round(done, timer.repeats + 2)
        tier = BlockedTier()
        with make_cache(tier) as cache:
            try:
                begin = time.perf_counter()
                found = cache.fetch(keys, 4)
                past.append((time.perf_counter() - begin - DEADLINE_S) * 1e6)
                stats = cache.stats().tiers[0]
            finally:
                tier.release()
        if any(found) or (stats.late, stats.is_open) != (case.keys, True):
            raise RuntimeError("the fetch of a tier that hangs was not late: it gets no number")
        plain.append(plain_wait())
    return {FETCH: Sample.of(past[2:]), TIMED: Sample.of(plain[2:])}


def plain_wait() -> float:
    """Return the microseconds past the deadline of a plain timed wait."""
    begin = time.perf_counter()
    with suppress(queue.Empty):
        queue.SimpleQueue().get(timeout=DEADLINE_S)
    return (time.perf_counter() - begin - DEADLINE_S) * 1e6


def measure_refusals(case: WaitCase, timer: Timer) -> dict[str, Sample]:
    """Return the microseconds of `begin_fetch` while the breaker is open, and in a cache without tiers."""
    tier = BlockedTier()
    with make_cache(tier) as cache, make_cache() as plain:
        try:
            cache.fetch([b"\xff" * 32], 4)  # opens the breaker; the worker hangs
            return measure_open_breaker(case, cache, plain, timer)
        finally:
            tier.release()


def measure_open_breaker(
    case: WaitCase, cache: EmbeddingCache, plain: EmbeddingCache, timer: Timer
) -> dict[str, Sample]:
    """Return the microseconds of `begin_fetch` of a cache whose breaker is open, and of one without tiers."""
    keys, before = keys_of(case), cache.stats().tiers[0]
    fetch = cache.begin_fetch(keys, 4)
    refused = cache.stats().tiers[0].refused - before.refused
    if not before.is_open or not fetch.done or any(fetch.wait()) or refused != case.keys:
        raise RuntimeError("a breaker that is open has not refused the fetch: it gets no number")
    calls: dict[str, Callable[[], object]] = {
        OPEN: lambda: cache.begin_fetch(keys, 4),
        WITHOUT: lambda: plain.begin_fetch(keys, 4),
    }
    return timer.rounds_us(calls, calls=9)
