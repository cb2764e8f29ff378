"""The cache compared with its model over random sequences of calls."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from cache_cases import read_entry, runs_of
from cache_model import CacheModel, Item, PendingWrite, same_rows
from caches import make_cache
from failure import Failure, fail
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vitcache.cache.call_arguments import tenant_label
from vitcache.pages.lease import Lease
from vitcache.pages.pool import PagePool
from vitcache.pages.reservation import Reservation
from vitcache.testing import inspect

PAGE_ROWS, WIDTH, NUM_RECORDED = 2, 4, 3
PAGE_BYTES = PAGE_ROWS * WIDTH * 4
KEYS = [bytes([number]) * 32 for number in range(7)]

keys = st.sampled_from(KEYS)
widths = st.sampled_from([WIDTH, WIDTH, 2, 1])
tiers = st.sampled_from(["device", "device", "host", "both"])
tenants = st.sampled_from(["", "", "one", "two"])


class CacheMachine(RuleBasedStateMachine):
    """Makes each call on the cache and on its model, and compares the two after it."""

    @initialize(device_pages=st.integers(1, 6), host_pages=st.integers(0, 4))
    def open(self, device_pages: int, host_pages: int) -> None:
        self.cache = make_cache(
            device_pages, host_pages, width=WIDTH, page_rows=PAGE_ROWS, record_evictions=NUM_RECORDED
        )
        self.model = CacheModel(device_pages, host_pages, PAGE_ROWS, WIDTH, NUM_RECORDED)
        self.leases: list[tuple[Lease, Item]] = []
        self.reserved: list[tuple[Reservation, PendingWrite]] = []
        self.value = 0.0
        self.stale = False  # whether pages of an earlier epoch may be in use

    @rule(key=keys, num_rows=st.integers(0, 14), width=widths, tier=tiers, tenant=tenants)
    def put(self, key: bytes, num_rows: int, width: int, tier: str, tenant: str) -> None:
        rows, tier = self.new_rows(num_rows, width), tier if self.cache.has_host_tier else "device"
        inserted = self.cache.put(key, rows, epoch=self.model.epoch, tier=tier, tenant=tenant)
        assert inserted == self.model.put(key, rows, tier=tier, tenant=tenant)
        rows.fill_(float("nan"))

    @precondition(lambda self: self.model.epoch)
    @rule(key=keys, num_rows=st.integers(0, 4), data=st.data())
    def put_rows_of_an_earlier_epoch(self, key: bytes, num_rows: int, data: st.DataObject) -> None:
        epoch = data.draw(st.integers(0, self.model.epoch - 1))
        assert not self.cache.put(key, self.new_rows(num_rows), epoch=epoch)
        self.model.counts["rejections"] += 1

    @rule(
        key=keys,
        num_rows=st.integers(0, 12),
        width=widths,
        tier=tiers,
        method=st.sampled_from(["write", "copy_pages"]),
    )
    def put_while_copies_fail(self, key: bytes, num_rows: int, width: int, tier: str, method: str) -> None:
        rows, tier = self.new_rows(num_rows, width), tier if self.cache.has_host_tier else "device"
        before = self.cache.stats()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PagePool, method, fail)
            try:
                admitted = self.cache.put(key, rows, tier=tier)
            except Failure:
                self.model.put(key, rows, fails=True, tier=tier)
                assert self.cache.stats().insertions == before.insertions
            else:
                assert admitted == self.model.put(key, rows, tier=tier)

    @rule(key=keys, num_rows=st.integers(0, 14), width=widths, tenant=tenants)
    def reserve(self, key: bytes, num_rows: int, width: int, tenant: str) -> None:
        assert self.cache.pages_for(num_rows, width) == self.model.pages_for(num_rows, width)
        reservation = self.cache.reserve(key, num_rows, row_width=width, tenant=tenant)
        pending = self.model.reserve(key, num_rows, width, tenant=tenant)
        assert (reservation is None) == (pending is None)
        if reservation is not None and pending is not None:
            self.reserved.append((reservation, pending))

    @rule(key=keys, num_rows=st.integers(0, 14), width=widths)
    def reserve_run(self, key: bytes, num_rows: int, width: int) -> None:
        reservation = self.cache.reserve(key, num_rows, row_width=width, contiguous=True)
        self.check_run(reservation, self.model.pages_for(num_rows, width))
        has_run = reservation is not None
        pending = self.model.reserve_run(key, num_rows, width, has_run=has_run)
        if reservation is not None and pending is not None:
            self.reserved.append((reservation, pending))

    @precondition(lambda self: self.leases)
    @rule(key=keys, data=st.data(), contiguous=st.booleans())
    def write_leased_rows(self, key: bytes, data: st.DataObject, contiguous: bool) -> None:
        lease, item = self.leases[data.draw(st.integers(0, len(self.leases) - 1))]
        shape = (lease.num_rows, lease.row_width)
        reservation = self.cache.reserve(key, shape[0], row_width=shape[1], contiguous=contiguous)
        if contiguous:
            pending = self.model.reserve_run(key, *shape, has_run=reservation is not None)
        else:
            pending = self.model.reserve(key, *shape)
        assert (reservation is None) == (pending is None)
        if reservation is not None and pending is not None:
            reservation.write(lease)
            assert same_rows(reservation.to_tensor(), item.rows)
            assert reservation.commit() == self.model.commit(pending, item.rows)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), end=st.sampled_from(["commit", "commit_lease", "cancel", "forget"]))
    def end_reservation(self, data: st.DataObject, end: str) -> None:
        reservation, pending = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1)))
        if end.startswith("commit"):
            rows = self.new_rows(reservation.num_rows, reservation.row_width)
            if pending.source is None:
                reservation.write(rows)
            else:
                rows = pending.source.rows
            if end == "commit":
                assert reservation.commit() == self.model.commit(pending, rows)
                return
            lease, inserted = reservation.commit_lease(), self.model.commit(pending, rows)
            assert (lease is not None) == inserted
            if lease is not None:
                item = self.model.items()[pending.key]
                item.leases += 1
                self.leases.append((lease, item))
            return
        if end == "cancel":
            reservation.cancel()
        del reservation
        self.model.cancel(pending)

    @rule(num_rows=st.lists(st.integers(0, 8), max_size=3), width=widths)
    def expect(self, num_rows: list[int], width: int) -> None:
        self.cache.expect(num_rows, row_width=width)
        self.model.expect(num_rows, [width] * len(num_rows))

    @rule(num_rows=st.lists(st.integers(0, 8), max_size=3))
    def expect_while_copies_fail(self, num_rows: list[int]) -> None:
        before = self.cache.stats().writebacks
        self.model.expect(num_rows, [WIDTH] * len(num_rows))
        copies = self.model.counts["writebacks"] - before
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PagePool, "copy_pages", fail)
            with pytest.raises(Failure) if copies else nullcontext():
                self.cache.expect(num_rows)
        self.model.forget_copies(copies)

    @rule(key=keys)
    def discard(self, key: bytes) -> None:
        assert self.cache.discard(key) == self.model.discard(key)

    @rule(key=keys, num_rows=st.integers(0, 6), width=widths, tenant=tenants)
    def fetch(self, key: bytes, num_rows: int, width: int, tenant: str) -> None:
        label = tenant_label(tenant)
        begin = inspect(self.cache).coordinator.begin_fetch
        reservation = begin(key, num_rows, width, self.model.epoch, label)
        pending = self.model.fetch(key, num_rows, width, tenant)
        assert (reservation is None) == (pending is None)
        if reservation is not None and pending is not None:
            assert sum(map(len, reservation.host_parts())) == num_rows * width * 4
            self.reserved.append((reservation, pending))

    @rule(key=keys, num_rows=st.integers(0, 6), width=widths)
    def peek(self, key: bytes, num_rows: int, width: int) -> None:
        lease = inspect(self.cache).ledger.peek(key, num_rows, width)
        item = self.model.peek(key, num_rows, width)
        assert (lease is None) == (item is None)
        if lease is not None and item is not None:
            self.leases.append((lease, item))

    @rule(key=keys)
    def forget(self, key: bytes) -> None:
        assert self.cache.forget(key) == self.model.forget(key)

    @rule(tenant=tenants)
    def forget_tenant(self, tenant: str) -> None:
        assert self.cache.forget_tenant(tenant) == self.model.forget_tenant(tenant)

    @rule(key=keys)
    def discard_from_host(self, key: bytes) -> None:
        assert self.cache.discard(key, tier="host") == self.model.discard_from_host(key)

    @rule(key=keys)
    def copy_to_host(self, key: bytes) -> None:
        assert self.cache.copy_to_host(key) == self.model.copy_to_host(key)

    @rule(key=keys)
    def demote(self, key: bytes) -> None:
        assert self.cache.demote(key) == self.model.demote(key)

    @rule(key=keys, method=st.sampled_from(["copy_to_host", "demote"]))
    def copy_while_it_fails(self, key: bytes, method: str) -> None:
        before = self.cache.stats().writebacks
        item = self.model.items().get(key)
        is_leased = item is not None and item.leases > 0 and method == "demote"
        has_copy = not is_leased and self.model.copy_to_host(key)
        copies = self.model.counts["writebacks"] - before
        self.model.forget_copies(copies)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PagePool, "copy_pages", fail)
            with pytest.raises(Failure) if copies else nullcontext():
                assert getattr(self.cache, method)(key) == has_copy
        if method == "demote" and not copies:
            self.model.demote(key)

    @rule()
    def compact(self) -> None:
        order = {tier: self.eviction_order(tier) for tier in ("device", "host")}
        assert self.cache.compact() == self.model.can_compact()
        if self.model.can_compact():
            free = sorted(inspect(self.cache).device_pool.free_pages)
            used = sum(item.pages for item in self.model.tiers["device"])
            assert free == list(range(used, self.model.capacity["device"]))
        for item in self.model.tiers["device"]:
            assert same_rows(read_entry(self.cache, item.key), item.rows)
        assert order == {tier: self.eviction_order(tier) for tier in ("device", "host")}

    @rule()
    def compact_while_moves_fail(self) -> None:
        entries = sorted(
            (inspect(self.cache).entry(item.key) for item in self.model.tiers["device"]),
            key=lambda entry: entry.pages[0],
        )
        used = sorted(page for entry in entries for page in entry.pages)
        moving = [entry.key for entry in entries if any(used.index(page) != page for page in entry.pages)]
        will_move = moving if self.model.can_compact() else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PagePool, "move_pages", fail)
            with pytest.raises(Failure) if self.model.can_compact() else nullcontext():
                assert not self.cache.compact()
        self.model.lose_device_pages(will_move)

    @rule()
    def take_evicted(self) -> None:
        assert self.cache.take_evicted() == self.model.take_evicted()

    @rule(key=keys, num_rows=st.none() | st.integers(0, 6), width=st.none() | widths)
    def get(self, key: bytes, num_rows: int | None, width: int | None) -> None:
        lease = self.cache.get(key, num_rows=num_rows, row_width=width)
        item = self.model.get(key, num_rows, width)
        assert (lease is None) == (item is None)
        if lease is not None and item is not None:
            assert lease.hits == item.hits
            self.leases.append((lease, item))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), contiguous=st.booleans(), directly=st.booleans())
    def promote(self, data: st.DataObject, contiguous: bool, directly: bool) -> None:
        lease, item = self.leases[data.draw(st.integers(0, len(self.leases) - 1))]
        reservation = self.cache.promote(lease, contiguous=contiguous)
        if contiguous and item in self.model.tiers["host"]:
            self.check_run(reservation, item.pages)
        has_run = reservation is not None if contiguous else None
        pending = self.model.promote(item, has_run=has_run)
        assert (reservation is None) == (pending is None)
        if reservation is not None and pending is not None:
            reservation.write(lease if directly else lease.to_tensor())
            self.reserved.append((reservation, pending))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), forget=st.booleans())
    def release(self, data: st.DataObject, forget: bool) -> None:
        lease, item = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        if not forget:
            lease.release()
        del lease
        self.model.release(item)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.clear()
        self.stale = False

    @rule()
    def advance_epoch(self) -> None:
        self.cache.advance_epoch()
        self.model.clear()
        self.stale = True

    @invariant()
    def agree(self) -> None:
        self.cache.check_integrity()
        items, stats = self.model.items(), self.cache.stats()
        assert self.cache.epoch == self.model.epoch
        assert [key in self.cache for key in KEYS] == [key in items for key in KEYS]
        assert len(self.cache) == stats.entries == len(items)
        assert {name: getattr(stats, name) for name in self.model.counts} == self.model.counts
        being_demoted = sum(len(pending.demoted) for pending in self.model.pending)
        assert stats.entries + being_demoted == stats.insertions - stats.evictions
        assert stats.leased_pages == sum(map(self.model.leased_pages, self.model.tiers))
        for tier, used, capacity in (
            ("device", stats.device_bytes, stats.device_capacity_bytes),
            ("host", stats.host_bytes, stats.host_capacity_bytes),
        ):
            assert capacity == self.model.capacity[tier] * PAGE_BYTES
            needed = (self.model.capacity[tier] - self.model.free_pages(tier)) * PAGE_BYTES
            assert used == needed or (self.stale and needed < used <= capacity)
        for lease, item in self.leases:
            assert same_rows(lease.to_tensor(), item.rows)
            assert (lease.num_rows, lease.row_width) == tuple(item.rows.shape)
            assert (lease.tier == "host") == (item in self.model.pages_of("host"))

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for key, item in self.model.items().items():
            with self.cache.get(key) as lease:
                assert same_rows(lease.to_tensor(), item.rows)
        self.cache.close()
        for lease, item in self.leases:
            assert same_rows(lease.to_tensor(), item.rows)
            lease.release()

    def check_run(self, reservation: Reservation | None, pages: int) -> None:
        """Check that a reservation took the start of the shortest run that is long enough."""
        free = set(inspect(self.cache).device_pool.free_pages)
        taken = [] if reservation is None else inspect(self.cache).pages_of(reservation)
        free |= set(taken)
        runs = [run for run in runs_of(free) if len(run) >= pages]
        assert bool(taken) == bool(runs)
        if taken:
            shortest = min(runs, key=len)
            assert taken == shortest[:pages]
            assert len(reservation.segments()) == (reservation.num_rows > 0)

    def eviction_order(self, tier: str) -> list[bytes]:
        has_tier = tier == "device" or self.cache.has_host_tier
        return inspect(self.cache).eviction_order(tier) if has_tier else []

    def new_rows(self, num_rows: int, width: int = WIDTH) -> torch.Tensor:
        self.value += 1.0
        return torch.arange(num_rows * width).view(num_rows, width) / 64 + self.value


CacheMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_random_calls_agree_with_the_model = CacheMachine.TestCase
