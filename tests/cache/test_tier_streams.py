"""Order between streams and the workers of tiers: the host reads written rows, and writes idle pages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from stream_model import StreamModel
from tiers.planted_tier import PlantedTier
from tiers.tier_cache import LONG, key_of, rows_of

from vitcache import WriteBack
from vitcache.cache.call_arguments import tenant_label
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.tier_books import TierBooks
from vitcache.pages.lease import Lease
from vitcache.testing import inspect
from vitcache.tiers import EntryName, FetchOutcome, Transfer
from vitcache.tiers.tier_jobs import StoreJob

PAGE_BYTES = 8  # one row of two elements


class ModelTier(PlantedTier):
    """A tier whose accesses to pages are those of the host in a model of streams."""

    def __init__(self, model: StreamModel) -> None:
        super().__init__()
        self.model = model
        self.pools: dict[str, int] = {}  # address by tier

    def access(self, transfers: Sequence[Transfer], *, write: bool) -> None:
        if len(self.pools) < 2:
            return
        with self.model.on("host"):
            for transfer in transfers:
                for part in transfer.parts:
                    for page in self.pages(part):
                        self.model.access(page, write=write)
        self.model.order_after_host()

    def pages(self, part: np.ndarray) -> list[tuple[str, int]]:
        address = part.__array_interface__["data"][0]
        tier, start = max(
            ((tier, start) for tier, start in self.pools.items() if start <= address),
            key=lambda pool: pool[1],
        )
        first = (address - start) // PAGE_BYTES
        return [(tier, first + number) for number in range(-(-part.size // PAGE_BYTES))]

    def fetch(self, fetches: Sequence[Transfer]) -> list[FetchOutcome]:
        self.access(fetches, write=True)
        return super().fetch(fetches)

    def store(self, stores: Sequence[Transfer]) -> list[bool]:
        self.access(stores, write=False)
        return super().store(stores)

    def claim(self, names: Sequence[EntryName], ttl_s: float) -> list[bool]:
        return [True for _ in names]


def make(model: StreamModel) -> tuple[EmbeddingCache, ModelTier]:
    tier = ModelTier(model)
    options = {"tiers": [tier], "weights_name": "w", "write_back": WriteBack(hits=0)}
    cache = model.make_cache(6, 6, fetch_timeout_s=LONG, **options)
    for name in ("device", "host"):
        assert cache.put(key_of(99), torch.zeros(1, 2), tier=name)
        assert cache.flush(LONG)
        with cache.get(key_of(99)) as lease:
            tier.pools[name] = lease.pool.data_ptr()
        cache.discard(key_of(99))
    assert cache.flush(LONG)
    return cache, tier


def exercise(model: StreamModel, seed: int, steps: int = 250) -> int:
    """Drive a cache with a tier from four streams, and return how many entries were fetched."""
    chosen = random.Random(seed)
    cache, _ = make(model)
    leases: list[Lease] = []
    synchronized = model.num_synchronizations
    for _ in range(steps):
        number = chosen.randrange(6)
        with model.on(chosen.choice("abcd")):
            action = chosen.random()
            if action < 0.35:
                cache.put(
                    key_of(number), torch.zeros(1 + number % 3, 2), tier=chosen.choice(["device", "host"])
                )
            elif action < 0.6:
                lease = cache.get(key_of(number))
                if lease is not None:
                    lease.use()
                    for page in lease.pages:
                        model.access((lease.tier, page), write=False)
                    leases.append(lease)
                    if len(leases) > 2:
                        leases.pop(0).release()
            elif action < 0.75:
                inspect(cache).ledger.discard(key_of(number))
            elif action < 0.9:
                assert cache.flush(LONG)
            else:
                cache.fetch([key_of(number)], 1 + number % 3)
        # The worker's calls run while this thread waits: the model has one current stream.
        assert cache.flush(LONG)
    while leases:
        leases.pop().release()
    hits = cache.stats().tiers[0].hits
    assert model.num_synchronizations == synchronized
    cache.close()
    return hits


@pytest.mark.parametrize("seed", range(6))
def test_worker_and_streams_access_pages_in_order(seed: int) -> None:
    model = StreamModel()
    assert exercise(model, seed) > 0
    assert model.races == []


def test_model_finds_a_worker_that_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamModel, "wait_on_host", lambda self, fence: None)
    races = []
    for seed in range(3):
        model = StreamModel()
        exercise(model, seed)
        races += model.races
    assert any("host reads" in race for race in races)
    assert any("host writes" in race for race in races)


def test_rows_of_a_gpu_are_staged_on_the_stream_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StreamModel()
    cache = model.make_cache(6, 6)
    allocated: list[int] = []

    def allocate(num_bytes: int, device: torch.device, runtime: object) -> torch.Tensor:
        allocated.append(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8)

    monkeypatch.setattr("vitcache.cache.tier_books.allocate_pinned", allocate)
    current: Any = None
    books = TierBooks(inspect(cache).coordinator, current, torch.device("cuda", 0), cache.dtype)
    calls: list[str] = []
    for name in ("record", "wait", "wait_on_host"):
        method = getattr(StreamModel, name)

        def note(self: StreamModel, value: Any, name: str = name, method: Any = method) -> Any:
            calls.append(f"{name} on {self.stream}")
            return method(self, value)

        monkeypatch.setattr(StreamModel, name, note)
    for number, num_rows in ((1, 3), (2, 4), (3, 5)):
        rows = rows_of(number, num_rows, 2)
        with model.on("a"):
            assert cache.put(key_of(number), rows)
        job = StoreJob(key_of(number), num_rows, 2, tenant_label(""), num_rows * PAGE_BYTES, current)
        calls.clear()
        with model.on("d"):
            leased = books.read(job)
        assert leased is not None
        assert calls == ["wait on d", "record on d", "wait_on_host on d"]
        assert np.concatenate(leased.parts).tobytes() == rows.numpy().tobytes()
        assert model.clocks["host"]["a"] == model.clocks["a"]["a"]  # the host has waited for the write
        leased.lease.release()
        assert cache.stats().leased_pages == 0
    assert allocated == [32, 64]  # powers of two; the memory is kept, and grows if it must
    assert books.read(StoreJob(key_of(9), 1, 2, bytes(32), 8, current)) is None
    cache.check_integrity()
