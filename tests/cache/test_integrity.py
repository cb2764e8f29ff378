"""The cache is consistent under threads and in long runs; `check_integrity` reports planted faults."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import threading
from collections.abc import Callable

import pytest
import torch
from cache_cases import KEYS, WIDTH, make_rows
from caches import make_cache

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.pending import Demotion
from vitcache.testing import inspect


def lose_a_page(cache: EmbeddingCache) -> None:
    inspect(cache).device_pool.free_pages.pop()


def share_a_page(cache: EmbeddingCache) -> None:
    inspect(cache).device_pool.free_pages.append(inspect(cache).entry(KEYS[0]).pages[0])


def miscount_leases(cache: EmbeddingCache) -> None:
    inspect(cache).entry(KEYS[0]).leases += 1


def miscount_leased_pages(cache: EmbeddingCache) -> None:
    inspect(cache).device_pool.leased_pages += 1


def miscount_pending_pages(cache: EmbeddingCache) -> None:
    inspect(cache).device_pool.pending_pages += 1


def miscount_evictions(cache: EmbeddingCache) -> None:
    inspect(cache).counts.evictions += 1


def lose_an_entry(cache: EmbeddingCache) -> None:
    del inspect(cache).index.device[KEYS[0]]


def drop_without_lease(cache: EmbeddingCache) -> None:
    entry = inspect(cache).entry(KEYS[0])
    inspect(cache).index.remove(entry.key)
    inspect(cache).counts.evictions += 1
    inspect(cache).dropped.add(entry)


def shorten_an_entry(cache: EmbeddingCache) -> None:
    inspect(cache).entry(KEYS[0]).num_rows = 1


def add_demotion_without_write(cache: EmbeddingCache) -> None:
    entry = inspect(cache).entry(KEYS[0])
    inspect(cache).pending_demotions[entry.key] = Demotion(entry, inspect(cache).host_pool, ())


@pytest.mark.parametrize(
    ("tamper", "match"),
    [
        (lose_a_page, r"device pages \[2\] do not have exactly one owner"),
        (share_a_page, r"device pages \[0\] do not have exactly one owner"),
        (miscount_leases, "leases: expected 1, recorded 0"),
        (miscount_leased_pages, "leased device pages: expected 0, recorded 1"),
        (miscount_pending_pages, "pending device pages: expected 0, recorded 1"),
        (miscount_evictions, "entries: expected 1, recorded 0"),
        (lose_an_entry, "keys in the policy of the device tier"),
        (drop_without_lease, "dropped entries that wait for a release: expected 0, recorded 1"),
        (add_demotion_without_write, "demotions without a pending write: expected 0, recorded 1"),
        (shorten_an_entry, "pages of an entry: expected 1, recorded 2"),
    ],
)
def test_check_integrity_reports_each_planted_fault(
    tamper: Callable[[EmbeddingCache], None], match: str
) -> None:
    cache = make_cache(4, 4)
    cache.put(KEYS[0], make_rows(2))
    cache.check_integrity()
    tamper(cache)
    with pytest.raises(RuntimeError, match=match):
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
