"""Each policy in a cache with and without a host tier: rows are right, leases stay, the budget is exact."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, PAGE_ROWS, WIDTH, make_full, make_rows
from caches import make_cache
from pairwise import pairwise
from torch import Tensor

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.policies import POLICIES
from vitcache.pages.lease import Lease

DEVICE_PAGES = 5
on_each = pytest.mark.parametrize("policy", POLICIES)
on_tiers = pytest.mark.parametrize("host_pages", [0, 1, 6])


class History:
    """Random calls on a cache, and the rows that were last put under each key in this epoch."""

    def __init__(self, cache: EmbeddingCache, seed: int) -> None:
        self.cache = cache
        self.rng = random.Random(seed)
        self.last_rows: dict[bytes, Tensor] = {}
        self.leases: list[tuple[Lease, Tensor]] = []
        self.hits = 0

    def step(self) -> None:
        key, action = self.rng.choice(KEYS), self.rng.random()
        if action < 0.35:
            self.put(key)
        elif action < 0.7:
            self.get(key)
        elif action < 0.8:
            self.cache.expect([self.rng.randint(0, 9)])
        elif action < 0.98:
            if self.leases:
                self.leases.pop(self.rng.randrange(len(self.leases)))[0].release()
        else:
            self.cache.advance_epoch()
            self.last_rows.clear()
        self.check()

    def put(self, key: bytes) -> None:
        before = key in self.cache
        rows = torch.full((self.rng.randint(0, 7), WIDTH), self.rng.random())
        if self.cache.put(key, rows):
            assert key in self.cache
            self.last_rows[key] = rows.clone()
        else:
            assert (key in self.cache) == before
        rows.fill_(float("nan"))

    def get(self, key: bytes) -> None:
        lease = self.cache.get(key)
        if lease is None:
            return
        self.hits += 1
        self.leases.append((lease, self.last_rows[key]))
        reservation = self.cache.promote(lease)
        if reservation is not None:
            with reservation:
                reservation.write(lease.to_tensor())
                if self.rng.random() < 0.8:
                    reservation.commit()

    def check(self) -> None:
        self.cache.check_integrity()
        stats = self.cache.stats()
        assert stats.device_bytes <= stats.device_capacity_bytes
        assert stats.host_bytes <= stats.host_capacity_bytes
        assert stats.entries == len(self.cache) == sum(key in self.cache for key in KEYS)
        for lease, rows in self.leases:
            assert torch.equal(lease.to_tensor(), rows)


@pairwise(policy=POLICIES, host_pages=[0, 1, 6], seed=range(4))
def test_random_calls_return_the_last_rows_and_keep_leased_rows(
    policy: str, host_pages: int, seed: int
) -> None:
    history = History(make_cache(DEVICE_PAGES, host_pages, policy=policy), seed)
    for _ in range(400):
        history.step()
    assert history.hits > 20
    assert history.cache.stats().evictions > 20


@on_each
@on_tiers
def test_each_policy_rejects_an_oversize_entry_and_evicts_nothing(policy: str, host_pages: int) -> None:
    cache = make_full(DEVICE_PAGES, host_pages, policy=policy)
    before = cache.stats()
    assert not cache.put(KEYS[9], torch.ones(DEVICE_PAGES * PAGE_ROWS + 1, WIDTH))
    assert cache.stats() == replace(before, rejections=1)


@on_each
@on_tiers
def test_each_policy_evicts_no_leased_entry(policy: str, host_pages: int) -> None:
    cache = make_full(DEVICE_PAGES, host_pages, policy=policy)
    leases = [cache.get(key) for key in KEYS[: DEVICE_PAGES - 1]]
    for key in KEYS[DEVICE_PAGES:]:  # each put uses the only page that is not leased
        assert cache.put(key, torch.zeros(PAGE_ROWS, WIDTH))
    assert not cache.put(KEYS[0], torch.zeros(2 * PAGE_ROWS, WIDTH))
    for number, lease in enumerate(leases):
        assert torch.equal(lease.to_tensor(), make_rows(1, float(number)))
    assert cache.stats().device_bytes == DEVICE_PAGES * PAGE_BYTES
