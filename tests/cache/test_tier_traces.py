"""Random calls on a cache whose tiers fail, are late and write late: no wrong row, no lost page."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from tiers.planted_tier import Pause, PlantedTier
from tiers.tier_cache import LONG, Clock, key_of, rows_of, tier_cache

from vitcache import WriteBack
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.testing import inspect

NUM_KEYS = 8
HOST_PAGES = 12
METHODS = ("open", "exists", "fetch", "store", "claim", "erase", "revoke", "generation", "metrics")


class Trace:
    """One random trace. The model is a table of the rows that a key may have, in the weights of now.

    Rows tell their key and their weights. A look-up may miss, but never has other rows than those of the
    table; a key that was forgotten is found nowhere before it is inserted again.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = Clock()
        self.tiers = [PlantedTier(16 * 32), PlantedTier(1 << 20)]
        self.tiers[1].name = "far"
        self.weights = 0
        self.life = 0
        self.inserted: set[int] = set()  # with the weights of now, and not forgotten since
        self.paused: list[Pause] = []
        self.leases: list[tuple[Lease, torch.Tensor]] = []
        self.cache = self.open()

    def open(self) -> EmbeddingCache:
        return tier_cache(
            *self.tiers,
            clock=self.clock,
            device_pages=6,
            host_pages=HOST_PAGES,
            checksum=self.random.random() < 0.5,
            fetch_timeout_s=5.0,
            weights_name=self.name,
            write_back=WriteBack(
                hits=self.random.choice([0, 1, 2]), queue_bytes=self.random.choice([64, 1 << 20])
            ),
        )

    @property
    def name(self) -> str:
        """The name of the weights: that of two sets of weights alternates."""
        return f"weights {self.life}.{self.weights % 2}"

    def rows(self, number: int) -> torch.Tensor:
        return rows_of(number + 100 * self.weights, 1 + number % 4)

    def step(self) -> None:
        step = self.random.choice(
            [
                *(self.put,) * 6,
                *(self.get,) * 6,
                *(self.evict,) * 5,
                *(self.fetch,) * 5,
                *(self.write_late,) * 3,
                *(self.begin_fetch, self.begin_fetch, self.wait, self.advance, self.advance, self.advance),
                *(self.plant, self.discard, self.forget, self.release, self.restart),
            ]
        )
        step()
        self.cache.check_integrity()

    def number(self) -> int:
        """The number of a key, rather of one that is somewhere."""
        known = sorted(self.inserted)
        return self.random.choice(known) if known and self.random.random() < 0.8 else self.any_number()

    def any_number(self) -> int:
        return self.random.randrange(NUM_KEYS)

    def put(self) -> None:
        number = self.any_number()
        if self.cache.put(
            key_of(number), self.rows(number), tier=self.random.choice(["device", "host", "both"])
        ):
            self.inserted.add(number)

    def get(self) -> None:
        number = self.number()
        lease = self.cache.get(key_of(number))
        if lease is not None:
            rows = lease.to_tensor()
            assert torch.equal(rows, self.rows(number)), (number, rows)
            assert number in self.inserted
            self.leases.append((lease, rows))
            if len(self.leases) > 2:
                self.release()

    def evict(self) -> None:
        """Let an entry leave the cache, and not the tiers."""
        inspect(self.cache).ledger.discard(key_of(self.number()))

    def release(self) -> None:
        if self.leases:
            lease, rows = self.leases.pop(0)
            assert torch.equal(lease.to_tensor(), rows)  # its pages were not written
            lease.release()

    def fetch(self) -> None:
        numbers = [self.number() for _ in range(self.random.randint(1, 5))]
        # A planted pause may hold the tier for ever, so the wait is short then.
        found = self.cache.fetch(
            [key_of(number) for number in numbers],
            [1 + number % 4 for number in numbers],
            timeout_s=0.005 if self.paused else LONG,
        )
        assert all(
            number in self.inserted for number, is_found in zip(numbers, found, strict=True) if is_found
        )

    def begin_fetch(self) -> None:
        numbers = [self.number() for _ in range(self.random.randint(1, 5))]
        fetch = self.cache.begin_fetch(
            [key_of(number) for number in numbers], [1 + number % 4 for number in numbers]
        )
        if self.random.random() < 0.3:
            fetch.cancel()

    def plant(self) -> None:
        tier = self.random.choice(self.tiers)
        kind = self.random.random()
        if kind < 0.25:
            tier.fail(self.random.choice(METHODS), OSError("planted"), self.random.randint(1, 3))
        elif kind < 0.35:
            tier.fail(self.random.choice(["erase", "revoke"]), OSError("planted"))
        elif kind < 0.55:
            tier.return_unsafe()
            if not self.paused:
                self.paused.append(tier.pause("close"))
        elif kind < 0.65:
            tier.return_damaged(self.random.randint(1, 2))
        elif kind < 0.7:
            tier.return_unsafe()
            tier.fail("close", OSError("planted"))
        elif not self.paused:
            self.paused.append(tier.pause(self.random.choice(["exists", "fetch", "store", "close"])))

    def discard(self) -> None:
        number = self.number()
        self.cache.discard(key_of(number))
        self.inserted.discard(number)

    def forget(self) -> None:
        number = self.number()
        self.unblock()
        try:
            self.cache.forget(key_of(number), timeout_s=LONG)
        except RuntimeError:
            assert any(tier.failures for tier in self.cache.stats().tiers)
        self.inserted.discard(number)
        assert key_of(number) not in self.cache

    def advance(self) -> None:
        if self.random.random() < 0.1:
            self.unblock()
            self.weights += self.random.choice([1, 2])
            self.inserted.clear()
            self.cache.advance_epoch(weights_name=self.name)
        else:
            self.clock.advance(self.random.choice([1, 40, 40]))

    def unblock(self) -> None:
        while self.paused:
            self.paused.pop().release()

    def wait(self) -> None:
        self.unblock()
        assert self.cache.flush(LONG)

    def write_late(self) -> None:
        for tier in self.tiers:
            tier.write_late()

    def restart(self) -> None:
        if self.random.random() < 0.3:
            self.unblock()
            while self.leases:
                self.release()
            is_lost = self.has_debts()
            self.cache.close()
            for tier in self.tiers:
                tier.inner.close()  # also if its `close` failed
            if is_lost:  # an erase or a revoke that a tier still owes is lost with the process
                self.life += 1
                self.weights += 1
                self.inserted.clear()
            self.cache = self.open()

    def has_debts(self) -> bool:
        self.cache.flush(LONG)
        runners: Any = self.cache._lower._runners  # type: ignore[union-attr]
        return any(runner._engine._owed for runner in runners)

    def end(self) -> None:
        while self.leases:
            self.release()
        self.unblock()
        self.cache.flush(LONG)
        self.cache.check_integrity()
        kept = sum(tier.quarantined_bytes for tier in self.cache.stats().tiers)
        self.cache.clear()
        self.cache.flush(LONG)
        stats = self.cache.stats()
        assert (stats.host_bytes + stats.device_bytes > 0) == (kept > 0)
        assert kept or stats.leased_pages == 0
        self.cache.close()


@pytest.mark.parametrize("seed", range(12))
def test_random_trace_has_no_wrong_row_and_loses_no_page(seed: int) -> None:
    trace = Trace(seed)
    try:
        for _ in range(250):
            trace.step()
        trace.end()
    finally:
        trace.unblock()


def test_threads_that_fetch_and_put_at_once_find_right_rows() -> None:
    tier = PlantedTier(1 << 20)
    errors: list[BaseException] = []
    with tier_cache(tier, device_pages=4, host_pages=16, checksum=True) as cache:

        def work(seed: int) -> None:
            chosen = random.Random(seed)
            try:
                for _ in range(150):
                    numbers = [chosen.randrange(30) for _ in range(4)]
                    keys = [key_of(number) for number in numbers]
                    cache.fetch(keys, 2)
                    for number, lease in zip(numbers, cache.get_many(keys), strict=True):
                        if lease is None:
                            cache.put(key_of(number), rows_of(number))
                        else:
                            with lease:
                                assert torch.equal(lease.to_tensor(), rows_of(number))
                    if chosen.random() < 0.1:
                        cache.forget(key_of(numbers[0]))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert not errors
        assert cache.flush(LONG)
        cache.check_integrity()
        assert cache.stats().tiers[0].hits > 0
