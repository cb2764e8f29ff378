"""A million operations on full caches: they stay consistent, rows are right, memory does not grow."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest
import torch
from cache_cases import PAGE_ROWS, WIDTH
from caches import make_cache

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.policies import POLICIES
from vitcache.pages.lease import Lease

STEPS = 1_000_000 // len(POLICIES)
NUM_KEYS, DEVICE_PAGES, HOST_PAGES = 2000, 600, 600
KEYS = [random.Random(number).randbytes(32) for number in range(NUM_KEYS)]
ROWS = [torch.full((1 + number % (3 * PAGE_ROWS), WIDTH), float(number)) for number in range(NUM_KEYS)]
MOST_OBJECTS = 5_000  # the number of entries varies
MOST_BYTES = 16 << 20  # 50 bytes per step: a leak of one object per step would exceed it


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(cache: EmbeddingCache, rng: random.Random, steps: int) -> None:
    """Use the cache as an engine does: most items are known, some leases last, epochs end."""
    leases: list[Lease] = []
    for step in range(steps):
        number = min(int(rng.expovariate(1 / 150)), NUM_KEYS - 1)
        lease = cache.get(KEYS[number], num_rows=len(ROWS[number]))
        if lease is None:
            if step % 2:
                cache.expect([len(ROWS[number])])
            cache.put(KEYS[number], ROWS[number])
        elif lease.tier == "host" and lease.hits > 1 and (reservation := cache.promote(lease)):
            with lease, reservation:
                reservation.write(lease.to_tensor())
                reservation.commit()
        elif step % 8 == 0:
            leases.append(lease)
            if len(leases) > 100:
                leases.pop(rng.randrange(len(leases))).release()
        else:
            lease.release()
        if step % 1000 == 0:
            lease = cache.get(KEYS[number])
            assert lease is None or torch.equal(lease.to_tensor(), ROWS[number])
            cache.check_integrity()
        if step % 25_000 == 0:
            cache.advance_epoch()


@pytest.mark.soak
@pytest.mark.parametrize("policy", POLICIES)
def test_million_operations_leak_no_objects_and_no_memory(policy: str) -> None:
    cache = make_cache(DEVICE_PAGES, HOST_PAGES, policy=policy)
    rng = random.Random(0)
    run(cache, rng, STEPS // 10)
    gc.collect()
    objects, resident = len(gc.get_objects()), resident_bytes()
    run(cache, rng, STEPS)
    gc.collect()
    assert len(gc.get_objects()) - objects < MOST_OBJECTS
    assert resident_bytes() - resident < MOST_BYTES
    stats = cache.stats()
    assert stats.leased_pages == 0
    assert stats.promotions > 100
    assert stats.evictions > 1000
    assert stats.hits + stats.misses > STEPS
    cache.check_integrity()
