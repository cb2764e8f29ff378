"""A cache in a forked child: its CPU memory is the child's own copy; memory of a GPU is refused at once."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest
import torch
from caches import make_cache
from hang_guard import Running, run_in_child, wait_until

from vitcache._native import Ledger
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.streams import make_timeline
from vitcache.pages.lease import Lease, LeaseTier
from vitcache.pages.pool import PagePool

CPU = torch.device("cpu")
KEYS = [bytes([number]) * 32 for number in range(12)]
ROWS = [torch.full((1 + number % 3, 4), float(number)) for number in range(12)]


def use(cache: EmbeddingCache, number: int) -> None:
    """Insert an entry, read it if it was not evicted since, and check the cache."""
    with cache.claim(KEYS[number]) as claim:
        if claim.is_mine:
            claim.put(ROWS[number], tier="both" if number % 2 else "device")
    lease = cache.get(KEYS[number])
    if lease is not None:
        with lease:
            assert torch.equal(lease.to_tensor(), ROWS[number])
    cache.check_integrity()


@pytest.mark.parametrize("is_used", [False, True])
def test_cache_made_before_a_fork_works_in_the_child_and_stays_in_the_parent(is_used: bool) -> None:
    cache = make_cache(8, 8, checksum=True)
    if is_used:
        use(cache, 0)
        use(cache, 1)

    def check() -> None:
        for number in range(12):
            use(cache, number)
        assert cache.stats().insertions > 8
        cache.close()

    assert run_in_child(check) == 0
    assert cache.stats().insertions == 2 * is_used
    use(cache, 1)
    assert len(cache) == 1 + is_used


def test_forks_while_threads_use_the_cache_hang_no_child() -> None:
    cache, done = make_cache(8, 8, checksum=True), threading.Event()
    steps = [0, 0, 0]

    def work(thread: int) -> None:
        while not done.is_set():
            use(cache, (steps[thread] + thread) % 12)
            steps[thread] += 1

    def check() -> None:
        for number in range(12):
            use(cache, number)
        cache.stats()
        cache.close()

    running = Running(*[partial(work, thread) for thread in range(3)])
    try:
        for _ in range(25):
            before = sum(steps)
            assert run_in_child(check) == 0
            wait_until(lambda before=before: sum(steps) > before)
    finally:
        done.set()
        assert running.results() == [None] * 3
    cache.check_integrity()


def test_cache_whose_memory_a_child_cannot_use_is_refused_with_both_process_ids() -> None:
    tier = PagePool("device", 4, 2, 4, torch.float32, CPU).make_tier()
    lease_tier = LeaseTier(make_timeline(CPU), "device", 2, 4, torch.float32, CPU)
    ledger = Ledger("lru", tier, None, Lease, lease_tier, lease_tier, 0, "the memory of cuda:0")
    parent = os.getpid()

    def check() -> None:
        expected = rf"made in process {parent}; its child, process {os.getpid()}, cannot use the memory of"
        with pytest.raises(RuntimeError, match=expected):
            ledger.get(KEYS[0], None)
        with pytest.raises(RuntimeError, match=expected):
            ledger.check_open()
        ledger.close()

    assert ledger.get(KEYS[0], None) is None
    assert run_in_child(check) == 0
    assert ledger.get(KEYS[0], None) is None
