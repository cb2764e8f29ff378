"""The cache is consistent under threads and in long runs; `check_integrity` reports planted faults."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import re
import threading

import pytest
import torch
from cache_cases import KEYS, WIDTH, make_rows
from caches import make_cache

from vitcache._native import Ledger
from vitcache.testing import inspect


def test_check_integrity_raises_with_every_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(4, 4)
    cache.put(KEYS[0], make_rows(2))
    cache.check_integrity()
    inside = inspect(cache)
    shared = inside.entry(KEYS[0]).pages[0]
    inside.device_pool.free([shared], [])  # a page with two owners
    [lost], _ = inside.host_pool.allocate(1)  # a page without an owner
    found = (
        f"device pages [{shared}] do not have exactly one owner; "
        f"host pages [{lost}] do not have exactly one owner"
    )
    with pytest.raises(RuntimeError, match=re.escape(f"the cache is inconsistent: {found}")):
        cache.check_integrity()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "find_violations", lambda ledger: ["first", "second", "third"])
        with pytest.raises(RuntimeError, match=r"^the cache is inconsistent: first; second; third$"):
            cache.check_integrity()


def test_check_integrity_reports_one_lost_page() -> None:
    cache = make_cache(4, 4)
    cache.put(KEYS[0], make_rows(2))
    inspect(cache).device_pool.allocate(1)
    with pytest.raises(RuntimeError, match=r"device pages \[2\] do not have exactly one owner"):
        cache.check_integrity()


def test_threads_never_read_rows_of_another_key() -> None:
    cache = make_cache(8, 8)
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            barrier.wait()
            for step in range(400):
                number = (step * 7 + thread * 3) % len(KEYS)
                rows = torch.full((1 + number % 6, WIDTH), float(number))
                lease = cache.get(KEYS[number])
                if lease is None:
                    cache.put(KEYS[number], rows)
                else:
                    with lease:
                        assert torch.equal(lease.to_tensor(), rows)
                if step % 97 == thread:
                    cache.advance_epoch()
                if step % 89 == thread:
                    cache.clear()
                if step % 53 == 0:
                    cache.check_integrity()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    cache.check_integrity()
    stats = cache.stats()
    assert stats.hits > 0
    assert stats.demotions > 0
    assert stats.leased_pages == 0
    assert stats.entries == stats.insertions - stats.evictions


def test_long_run_keeps_no_extra_objects() -> None:
    cache = make_cache(4, 4)
    rows = [make_rows(pages) for pages in range(4)]

    def run(steps: int) -> int:
        for step in range(steps):
            key = (step * 31 % 997).to_bytes(32, "big")
            with cache.get(KEYS[step % 10]) or cache.get(key) or contextlib.nullcontext():
                cache.put(key, rows[1 + step % 3])
            cache.put(KEYS[step % 10], rows[1])
            if step % 1000 == 0:
                cache.advance_epoch()
        cache.check_integrity()
        gc.collect()
        return len(gc.get_objects())

    before = run(2000)
    assert run(20_000) - before < 200


def test_stats_returns_a_frozen_snapshot() -> None:
    cache = make_cache(1)
    before = cache.stats()
    cache.put(KEYS[0], make_rows(1))
    assert before.entries == 0
    assert cache.stats().entries == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.entries = 1
