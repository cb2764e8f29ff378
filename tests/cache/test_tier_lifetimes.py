"""The workers of tiers: close, garbage collection, forks, exit of the interpreter, and interrupts."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hang_guard import run_in_child
from interrupts import interrupt
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import LONG, fill, is_right, key_of, put, rows_of, stats_of, tier_cache, workers_of

from vitcache.cache import coordinator, embedding_cache, fetch, lower_tiers, offers
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.testing import inspect
from vitcache.tiers import breaker, completion, job_queue, tier_jobs, tier_runner, tier_worker

SUPPORT = Path(__file__).parents[1] / "support"


def test_freed_cache_ends_its_worker_and_stores_what_waits() -> None:
    tier = PlantedTier()
    cache = tier_cache(tier)
    assert cache.put(key_of(1), rows_of(1))
    cache.stats()
    [worker] = workers_of(cache)
    thread = worker._thread
    del cache, worker
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()
    assert tier.calls["close"] == 1
    with tier_cache(tier) as cache:
        assert cache.fetch([key_of(1)], 2) == [True]


def test_freed_cache_gives_its_memory_back_without_a_garbage_collection() -> None:
    tier = PlantedTier()
    cache = tier_cache(tier)
    put(cache, 1)
    [worker] = workers_of(cache)
    thread, ledger = worker._thread, inspect(cache).ledger
    gc.disable()
    try:
        del cache, worker
        thread.join(LONG)
        assert sys.getrefcount(ledger) == 2
    finally:
        gc.enable()


def test_second_close_does_nothing_and_later_calls_raise() -> None:
    tier = PlantedTier()
    cache = tier_cache(tier)
    put(cache, 1)
    cache.close()
    cache.close()
    assert tier.calls["close"] == 1
    calls: list[Callable[[], object]] = [
        lambda: cache.fetch([key_of(1)], 2),
        lambda: cache.begin_fetch([], 2),
        lambda: cache.flush(),
        lambda: cache.forget(key_of(1)),
        lambda: cache.forget_tenant(""),
        lambda: cache.discard(key_of(1)),
        lambda: cache.advance_epoch(),
        lambda: cache.stats(),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="the cache was closed"):
            call()
    assert tier.calls["erase"] + tier.calls["revoke"] == 0


def test_close_leaves_stores_out_after_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_worker, "CLOSE_S", 0.0)
    tier = PlantedTier()
    cache = tier_cache(tier)
    pause = tier.pause("store")
    for number in range(4):
        assert cache.put(key_of(number), rows_of(number))
    cache.stats()
    assert pause.started.wait(LONG)
    [worker] = workers_of(cache)
    worker.begin_close()
    pause.release()
    cache.close()
    assert (tier.calls["store"], tier.calls["close"]) == (1, 1)


def test_waiting_call_ends_with_the_cache() -> None:
    tier = PlantedTier()
    fill(tier, 1, 2)
    cache = tier_cache(tier)
    pause = tier.pause("exists")
    cache.begin_fetch([key_of(2)], 2)
    assert pause.started.wait(LONG)
    queued = cache.begin_fetch([key_of(1)], 2)
    closing = threading.Thread(target=cache.close)
    closing.start()
    pause.release()
    closing.join(LONG)
    assert queued.done
    with pytest.raises(RuntimeError, match="the cache was closed"):
        queued.wait()


def test_tiers_are_off_in_a_forked_child() -> None:
    tier = PlantedTier()
    fill(tier, 1, 2)
    cache = tier_cache(tier)
    pause = tier.pause("fetch")
    running = cache.begin_fetch([key_of(1)], 2)
    assert pause.started.wait(LONG)

    def check() -> None:
        assert running.wait(LONG) == [False]
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, False]
        assert cache.put(key_of(3), rows_of(3))
        assert cache.flush(LONG)
        assert is_right(cache, 3)
        cache.discard(key_of(3))
        with pytest.raises(RuntimeError, match="tier 'planted' could not erase the rows"):
            cache.forget(key_of(3))
        cache.advance_epoch(weights_name="new")
        assert stats_of(cache).stored == 0
        cache.check_integrity()
        cache.close()

    assert run_in_child(check) == 0
    pause.release()
    assert running.wait(LONG) == [True]
    put(cache, 4)
    assert stats_of(cache).stored == 1
    cache.close()


EXIT = """
import sys
sys.path.insert(0, {support!r})
from vitcache.tiers import tier_worker
tier_worker.CLOSE_S = {limit}
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import *

class Tier(PlantedTier):
    def store(self, stores):
        stored = super().store(stores)
        print("stored", flush=True)
        return stored

    def close(self):
        super().close()
        print("closed", flush=True)

tier = Tier()
cache = tier_cache(tier)
{body}
"""


@pytest.mark.parametrize(
    ("body", "limit", "output"),
    [
        ("cache.put(key_of(1), rows_of(1)); cache.stats()", 30.0, ["stored", "closed"]),
        ("pause = tier.pause('exists'); cache.begin_fetch([key_of(1)], 2); pause.started.wait(30)", 0.05, []),
        (
            "hung = Tier(); p = hung.pause('open'); cache = tier_cache(hung); p.started.wait(30)",
            0.05,
            ["closed"],
        ),
    ],
    ids=["stores that wait", "a call that hangs", "a tier that hangs when it is opened"],
)
def test_exit_of_the_interpreter_does_not_hang(body: str, limit: float, output: list[str]) -> None:
    script = EXIT.format(support=str(SUPPORT), body=body, limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, output, "")


FILES = [
    str(module.__file__)
    for module in (
        *(coordinator, fetch, lower_tiers, offers),
        *(breaker, completion, job_queue, tier_jobs, tier_runner, tier_worker),
    )
]
CALLS: dict[str, Callable[[EmbeddingCache], object]] = {
    "begin_fetch": lambda cache: cache.begin_fetch([key_of(1), key_of(2)], 2),
    "fetch": lambda cache: cache.fetch([key_of(1), key_of(2)], 2),
    "cancel": lambda cache: cache.begin_fetch([key_of(1)], 2).cancel(),
    "put": lambda cache: (cache.put(key_of(5), rows_of(5)), cache.stats()),
    "flush": lambda cache: cache.flush(LONG),
    "discard": lambda cache: cache.discard(key_of(4)),
    "forget": lambda cache: cache.forget(key_of(4)),
    "advance_epoch": lambda cache: cache.advance_epoch(weights_name="weights"),
    "close": lambda cache: cache.close(),
}


@pytest.mark.parametrize("name", CALLS)
def test_interrupt_leaves_no_lock_and_loses_no_page(name: str) -> None:
    line = 0
    while True:
        line += 1
        tier: Any = PlantedTier()
        fill(tier, 1, 2, 3)
        with tier_cache(tier, host_pages=32) as cache:
            put(cache, 4)
            if not interrupt(lambda: CALLS[name](cache), line, FILES):
                break
            thread = workers_of(cache)[0]._thread
            if name != "close":
                assert cache.flush(LONG)
                other = threading.Thread(target=cache.stats)  # a lock that was left acquired is not ours
                other.start()
                other.join(LONG)
                assert not other.is_alive()
                expected = [name != "advance_epoch" or cache.epoch == 0] * 3
                assert cache.fetch([key_of(number) for number in (1, 2, 3)], 2) in (expected, [True] * 3)
                assert cache.flush(LONG)
                cache.check_integrity()
        thread.join(LONG)
        assert not thread.is_alive(), line
    assert line > 3
    assert embedding_cache
