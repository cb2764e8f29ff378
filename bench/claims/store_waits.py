"""Waits of the bench `mooncake`: a caller past its deadline, and an open breaker; the master is stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vitcache import EmbeddingCache, MooncakeTier
from vitcache.bench.claims.tier_waits import (
    DEADLINE_S,
    FETCH,
    TIMED,
    WaitCase,
    add_waits,
    keys_of,
    make_cache,
    measure_open_breaker,
    plain_wait,
)
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.store_cluster import StoreCluster, store_cluster
from vitcache.bench.harness.timing import Sample, Timer

REPEATS = 12  # of a fetch: each one needs a new cache, and a second until the client gives up


class StoppedCase(WaitCase):
    """`keys` keys of a store whose master is stopped (SIGSTOP). `is_open`: the breaker is open already."""

    @property
    def name(self) -> str:
        """The state of the breaker, and the number of keys."""
        state = "master stopped, breaker open" if self.is_open else "master stopped"
        return f"{state}, {self.keys} keys"


def run_stopped(case: StoppedCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    yield "store"
    with store_cluster(1, node_bytes=64 << 20) as cluster:
        yield "calls in turns"
        if case.is_open:
            add_waits(case, recorder, _measure_open(case, cluster, timer))
        else:
            add_waits(case, recorder, _measure_deadlines(case, cluster, timer))


def _measure_open(case: StoppedCase, cluster: StoreCluster, timer: Timer) -> dict[str, Sample]:
    with _stopped_store(cluster) as cache, make_cache() as plain:
        cache.fetch([b"\xff" * 32], 4)  # is late, and opens the breaker
        return measure_open_breaker(case, cache, plain, timer)


def _measure_deadlines(case: StoppedCase, cluster: StoreCluster, timer: Timer) -> dict[str, Sample]:
    """Return the microseconds past the deadline of a fetch, and of a plain wait of the same length."""
    past, plain = [], []
    repeats = min(timer.repeats, REPEATS) + 2
    for done in range(repeats):
        timer.on_round(done, repeats)
        with _stopped_store(cluster) as cache:
            begin = time.perf_counter()
            found = cache.fetch(keys_of(case), 4)
            past.append((time.perf_counter() - begin - DEADLINE_S) * 1e6)
            stats = cache.stats().tiers[0]
        if any(found) or (stats.late, stats.is_open) != (case.keys, True):
            raise RuntimeError("the fetch from a store that is stopped was not late: it gets no number")
        plain.append(plain_wait())
    return {FETCH: Sample.of(past[2:]), TIMED: Sample.of(plain[2:])}


@contextmanager
def _stopped_store(cluster: StoreCluster) -> Iterator[EmbeddingCache]:
    """Open a cache with the store as its tier, and stop the master until the end of the block."""
    with make_cache(MooncakeTier(cluster.address, worth=None)) as cache:
        cache.fetch([b"\xfe" * 32], 4, timeout_s=10)  # the tier is open, and answers
        try:
            stop(cluster.master.pid)
            yield cache
        finally:
            os.kill(cluster.master.pid, signal.SIGCONT)


def stop(pid: int) -> None:
    """Stop a child process, and wait until it is stopped: it may answer a call in the time between."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
