"""Random calls on two caches that share a Mooncake store with all faults: no wrong row, no lost page."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from tiers.fake_store import FakeStore
from tiers.planted_tier import Pause
from tiers.tier_cache import LONG, Clock, key_of, rows_of, tier_cache

from vitcache import WriteBack
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.testing import inspect
from vitcache.tiers import MooncakeTier, mooncake_objects

NUM_KEYS = 8
NUM_STEPS = 1000
HOST_PAGES = 12
CALLS = ("exist", "get", "get", "get", "put", "start", "ranges", "end", "remove", "remove_by_regex")
CODES = (-200, -600, -601, -703, -704, -705, -707, -800, -800, -801, -900, -901, -1700, -12345, 0, 5)
EVERYWHERE = ("setup", "register_buffer", "get_one", "put_one", "upsert", *CALLS)


class Machine:
    """One process: a cache, its clock, and the leases that are not released."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.clock = Clock()
        self.tier = MooncakeTier(
            trace.fake.address, worth=None, single_flight=trace.random.random() < 0.5, replicas=2
        )
        self.leases: list[tuple[Lease, torch.Tensor]] = []
        self.cache: EmbeddingCache = self.open()

    def open(self) -> EmbeddingCache:
        chosen = self.trace.random
        return tier_cache(
            self.tier,
            clock=self.clock,
            device_pages=6,
            host_pages=HOST_PAGES,
            fetch_timeout_s=5.0,
            weights_name=self.trace.name,
            write_back=WriteBack(
                hits=chosen.choice([0, 0, 1]), queue_bytes=chosen.choice([64, 1 << 20]), from_device=True
            ),
        )

    def release(self) -> None:
        if self.leases:
            lease, rows = self.leases.pop(0)
            assert torch.equal(lease.to_tensor(), rows)  # its pages were not written
            lease.release()

    def has_debts(self) -> bool:
        self.cache.flush(LONG)
        runners: Any = self.cache._lower._runners  # type: ignore[union-attr]
        return any(runner._engine._owed for runner in runners)


class Trace:
    """One random trace. The model is the set of keys that have rows of the weights of now.

    Rows tell their key and their weights. A look-up may miss, but never has other rows; a key that was
    forgotten by both caches is found nowhere before it is inserted again.
    """

    def __init__(self, fake: FakeStore, seed: int) -> None:
        self.fake = fake
        self.random = random.Random(seed)
        self.weights = 0
        self.life = 0
        self.inserted: set[int] = set()
        self.paused: list[Pause] = []
        self.counts: Counter[str] = Counter()
        self.machines: list[Machine] = []
        self.machines = [Machine(self), Machine(self)]
        self.machine = self.machines[0]

    @property
    def name(self) -> str:
        """The name of the weights: that of two sets of weights alternates."""
        return f"weights {self.life}.{self.weights % 2}"

    @property
    def cache(self) -> EmbeddingCache:
        return self.machine.cache

    def rows(self, number: int) -> torch.Tensor:
        return rows_of(number + 100 * self.weights, 1 + number % 4)

    def step(self) -> None:
        self.machine = self.random.choice(self.machines)
        step = self.random.choice(
            [
                *(self.put,) * 6,
                *(self.get,) * 6,
                *(self.evict,) * 6,
                *(self.fetch,) * 8,
                *(self.write_late,) * 4,
                *(self.wait,) * 4,
                *(self.advance,) * 4,
                *(self.begin_fetch, self.plant, self.plant, self.release, self.damage),
                *(self.lose, self.forget, self.restart),
            ]
        )
        step()
        self.cache.check_integrity()

    def number(self) -> int:
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
        if not self.paused and self.random.random() < 0.7:
            assert self.cache.flush(LONG)

    def get(self) -> None:
        number = self.number()
        lease = self.cache.get(key_of(number))
        if lease is not None:
            rows = lease.to_tensor()
            assert torch.equal(rows, self.rows(number)), (number, rows)
            assert number in self.inserted
            self.machine.leases.append((lease, rows))
            if len(self.machine.leases) > 2:
                self.release()

    def release(self) -> None:
        self.machine.release()

    def evict(self) -> None:
        """Let entries leave the cache, and not the store."""
        for _ in range(4):
            inspect(self.cache).ledger.discard(key_of(self.number()))

    def fetch(self) -> None:
        numbers = [self.number() for _ in range(self.random.randint(1, 5))]
        found = self.cache.fetch(
            [key_of(number) for number in numbers],
            [1 + number % 4 for number in numbers],
            timeout_s=0.005 if self.paused else LONG,  # a planted pause may hold the tier for ever
        )
        assert {number for number, is_found in zip(numbers, found, strict=True) if is_found} <= self.inserted

    def begin_fetch(self) -> None:
        numbers = [self.number() for _ in range(self.random.randint(1, 5))]
        fetch = self.cache.begin_fetch(
            [key_of(number) for number in numbers], [1 + number % 4 for number in numbers]
        )
        if self.random.random() < 0.3:
            fetch.cancel()

    def plant(self) -> None:
        kind, nth = self.random.random(), self.random.randint(1, 2)
        if kind < 0.6:
            key = self.random.choice(["", f"/{key_of(self.any_number()).hex()}/"])
            self.fake.plant(self.random.choice(CALLS), self.random.choice(CODES), key, nth)
        elif kind < 0.7:
            self.fake.plant(self.random.choice(EVERYWHERE), RuntimeError("of C++"), nth=nth)
        elif kind < 0.8:
            self.fake.plant(self.random.choice(EVERYWHERE), -900, nth=nth)
        elif kind < 0.9 and not self.paused:
            self.fake.plant("get", -800)
            self.paused.append(self.fake.pause("close"))
            self.evict()
            self.fetch()
            self.write_late()
        elif not self.paused:
            self.paused.append(self.fake.pause(self.random.choice(["exist", "get", "put", "ranges"])))

    def damage(self) -> None:
        objects = [key for key, stored in self.fake.objects.copy().items() if len(stored.data) > 8]
        if objects:
            self.fake.flip(self.random.choice(objects), self.random.randrange(-64, 64))

    def lose(self) -> None:
        """Lose a node with its objects, or let a writer die."""
        self.settle()
        kind = self.random.random()
        if kind < 0.3:
            for key in list(self.fake.objects):
                if self.random.random() < 0.5:
                    del self.fake.objects[key]
        elif kind < 0.6:
            for key in list(self.fake.objects):
                if self.random.random() < 0.1:
                    self.fake.begin_and_die(key)

    def forget(self) -> None:
        number = self.number()
        self.unblock()
        for machine in self.machines:
            try:
                machine.cache.forget(key_of(number), timeout_s=LONG)
            except RuntimeError:
                assert machine.cache.stats().tiers[0].failures
        self.settle()
        owed = any(machine.has_debts() for machine in self.machines)
        # If one cache has stored it after the erase of the other one, its own call has erased it.
        if not owed:
            self.fake_has_none(number)
        for machine in self.machines:
            assert key_of(number) not in machine.cache
        self.inserted.discard(number)

    def fake_has_none(self, number: int) -> None:
        text = f"/{key_of(number).hex()}/"
        stored = [key for key, each in self.fake.objects.items() if text in key and each.writer is None]
        assert stored == []

    def advance(self) -> None:
        if self.random.random() < 0.05:
            self.settle()
            self.weights += self.random.choice([1, 2])
            self.inserted.clear()
            for machine in self.machines:
                machine.cache.advance_epoch(weights_name=self.name)
        else:
            for machine in self.machines:
                machine.clock.advance(self.random.choice([1, 40, 40]))

    def unblock(self) -> None:
        while self.paused:
            self.paused.pop().release()

    def settle(self) -> None:
        """Wait until no call runs."""
        self.unblock()
        for machine in self.machines:
            assert machine.cache.flush(LONG)

    def wait(self) -> None:
        self.settle()
        self.fake.lapse()

    def write_late(self) -> None:
        self.counts["late bytes"] += self.fake.write_late(self.random.randrange(256))

    def note(self, machine: Machine) -> None:
        stats = machine.cache.stats().tiers[0]
        for name in ("hits", "misses", "damaged", "failures", "stored", "late", "openings"):
            self.counts[name] += getattr(stats, name)

    def restart(self) -> None:
        if self.random.random() < 0.5:
            self.settle()
            if any(machine.has_debts() for machine in self.machines):
                return  # an erase that a tier owes is lost with the process
            machine = self.machine
            while machine.leases:
                machine.release()
            self.note(machine)
            machine.cache.close()
            machine.cache = machine.open()

    def end(self) -> None:
        self.settle()
        for machine in self.machines:
            while machine.leases:
                machine.release()
            cache = machine.cache
            cache.flush(LONG)
            cache.check_integrity()
            kept = cache.stats().tiers[0].quarantined_bytes
            self.note(machine)
            for number in range(NUM_KEYS):
                cache.discard(key_of(number))
            cache.flush(LONG)
            cache.clear()
            stats = cache.stats()
            assert (stats.host_bytes + stats.device_bytes > 0) == (kept > 0)
            assert kept or stats.leased_pages == 0
            cache.close()


@pytest.mark.parametrize("size", [0, 64 << 10], ids=["scattered", "gathered"])
@pytest.mark.parametrize("seed", range(8))
def test_random_trace_has_no_wrong_row_and_loses_no_page(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch, seed: int, size: int
) -> None:
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", size)
    monkeypatch.setattr(mooncake_objects, "_HEAD_BYTES", 24)  # a part of the first rows
    monkeypatch.setattr(mooncake_objects, "_MOST_ENTRIES", 2)
    trace = Trace(fake, seed)
    try:
        for _ in range(NUM_STEPS):
            trace.step()
        trace.end()
    finally:
        trace.unblock()
    assert min(trace.counts[name] for name in ("hits", "stored", "damaged", "failures")) > 0
