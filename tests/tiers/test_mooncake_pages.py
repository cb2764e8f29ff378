"""A cache over a Mooncake store: registered memory, quarantined pages, hangs, forks and lost numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hang_guard import run_in_child, wait_until
from stream_model import StreamModel
from tiers.fake_store import FakeStore
from tiers.tier_cache import LONG, Clock, is_right, key_of, put, rows_of, stats_of, tier_cache, workers_of

from vitcache.cache.call_arguments import tenant_label
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.tier_books import TierBooks
from vitcache.testing import inspect
from vitcache.tiers import MooncakeTier, mooncake_objects, mooncake_tier, tier_engine
from vitcache.tiers.breaker import FIRST_BACK_OFF_S, Breaker
from vitcache.tiers.store_run import run_store
from vitcache.tiers.tier_counts import TierCounts
from vitcache.tiers.tier_engine import TierEngine
from vitcache.tiers.tier_jobs import StoreJob
from vitcache.tiers.weights_name import CurrentWeights, Weights

ENTRY_BYTES = 2 * 4 * 4  # one page
OBJECT_BYTES = 4096 + ENTRY_BYTES


@pytest.fixture(params=[0, 64 << 10], ids=["scattered", "gathered"])
def tier(
    request: pytest.FixtureRequest, fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MooncakeTier]:
    """A tier that reads into pages, or into memory of its own. It has the entries 1 to 4."""
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", request.param)
    monkeypatch.setattr(mooncake_objects, "_HEAD_BYTES", request.param)
    made = MooncakeTier(fake.address, worth=None)
    with tier_cache(made, device_pages=64) as cache:
        put(cache, 1, 2, 3, 4)
    yield made
    assert made._client is None


def key_in(fake: FakeStore, number: int) -> str:
    """The key of the object of an entry."""
    [key] = [key for key in fake.objects if f"/{key_of(number).hex()}/" in key]
    return key


def evict(cache: EmbeddingCache) -> None:
    """Let all entries leave the cache, and not the store."""
    for number in range(100):
        inspect(cache).ledger.discard(key_of(number))


def num_host_pages(cache: EmbeddingCache) -> int:
    """How many pages entries can have, if they replace all other ones. Evicts them."""
    evict(cache)
    numbers = range(50, 100)
    for number in numbers:
        assert cache.put(key_of(number), rows_of(number), tier="host")
    found = sum(is_right(cache, number) for number in numbers)
    evict(cache)
    return found


@pytest.mark.parametrize("single_flight", [False, True])
def test_parts_of_a_cache_are_in_registered_memory_also_after_a_failure(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch, single_flight: bool
) -> None:
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", 0)  # each page is a part
    monkeypatch.setattr(mooncake_objects, "_HEAD_BYTES", 0)
    tier, clock = MooncakeTier(fake.address, worth=None, single_flight=single_flight), Clock()
    with tier_cache(tier, clock=clock, device_pages=32, host_pages=64) as cache:
        for first in (0, 20):
            for number in range(first, first + 9):
                where = ("device", "host", "both")[number % 3]
                put(cache, number, num_rows=1 + number % 5, tier=where)
            assert stats_of(cache).stored == (9 if first == 0 else 18)
            evict(cache)
            numbers = range(first, first + 9)
            found = cache.fetch([key_of(number) for number in numbers], [1 + n % 5 for n in numbers])
            assert found == [True] * 9
            assert all(is_right(cache, number, 1 + number % 5) for number in numbers)
            evict(cache)
            fake.plant("get", -800, nth=1)
            cache.fetch([key_of(first)], 1 + first % 5)
            assert cache.flush(LONG)
            clock.advance(FIRST_BACK_OFF_S)
            assert cache.fetch([key_of(first)], 1 + first % 5) == [True]
            assert cache.flush(LONG)
            evict(cache)
        assert cache.flush(LONG)
        cache.check_integrity()
    assert len(fake.clients) == 3
    assert fake.mistakes == []


def test_memory_that_was_not_registered_is_found(fake: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", 0)
    monkeypatch.setattr(mooncake_objects, "_HEAD_BYTES", 0)
    tier = MooncakeTier(fake.address, worth=None)
    monkeypatch.setattr(MooncakeTier, "register", lambda *_: None)
    with tier_cache(tier) as cache:
        put(cache, 1)
        assert stats_of(cache).stored == 0
    assert "are not registered" in fake.mistakes.pop()
    assert fake.mistakes == []


def test_staging_memory_of_a_gpu_is_registered_when_it_grows_and_after_a_failure(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", 0)
    monkeypatch.setattr(mooncake_objects, "_HEAD_BYTES", 0)
    monkeypatch.setattr(
        "vitcache.cache.tier_books.allocate_pinned",
        lambda num_bytes, device, runtime: torch.empty(num_bytes, dtype=torch.uint8),
    )
    model = StreamModel()
    cache = model.make_cache(20, 6)
    current = CurrentWeights(Weights("w", cache.dtype, inspect(cache).ledger.epoch))
    books = TierBooks(inspect(cache).coordinator, current, torch.device("cuda", 0), cache.dtype)
    counts = TierCounts()
    tier = MooncakeTier(fake.address, worth=None)
    engine = TierEngine(tier, Breaker(Clock()), counts)
    expected = {}
    for number, num_rows in ((1, 3), (2, 2), (3, 4), (4, 5), (5, 5)):
        rows = rows_of(number, num_rows, 2)
        assert cache.put(key_of(number), rows)
        job = StoreJob(key_of(number), num_rows, 2, tenant_label(""), rows.nbytes, current.weights)
        if number == 4:
            fake.plant("put", -800)
        is_stored = run_store(job._replace(is_probe=True), engine, books, counts, may_ask=True)
        assert is_stored == (number != 4)
        if is_stored:
            expected[number] = rows.numpy().tobytes()
    assert {number: bytes(fake.objects[key_in(fake, number)].data[4096:]) for number in expected} == expected
    assert len(fake.clients) == 2
    assert [memory.nbytes for memory in books.memory[-2:]] == [32, 64]  # 24, 32 and 40 bytes of rows
    engine.close()


def test_pages_of_a_failed_read_are_not_reused_before_the_client_is_closed(
    fake: FakeStore, tier: MooncakeTier
) -> None:
    clock = Clock()
    with tier_cache(tier, clock=clock, host_pages=2) as cache:
        fake.plant("get", -800)
        pause = fake.pause("close")
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        assert fetch.wait(LONG) == [False]  # it is not waited for `close`
        assert stats_of(cache).quarantined_bytes == ENTRY_BYTES
        assert num_host_pages(cache) == 1
        assert cache.put(key_of(9), rows_of(9), tier="host")
        assert fake.write_late() == OBJECT_BYTES
        assert is_right(cache, 9)
        cache.check_integrity()
        pause.release()
        assert cache.flush(LONG)
        assert fake.write_late() == 0
        assert stats_of(cache).quarantined_bytes == 0
        assert num_host_pages(cache) == 2
        evict(cache)
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1)], 2) == [True]
        assert is_right(cache, 1)
        assert len(fake.clients) == 3
        cache.check_integrity()


@pytest.mark.parametrize("code", [-800, -900, -12345, 0, ENTRY_BYTES])
def test_entries_beside_a_failed_read_enter_and_late_bytes_do_not_change_them(
    fake: FakeStore, tier: MooncakeTier, code: int
) -> None:
    with tier_cache(tier, clock=Clock(), host_pages=32) as cache:
        fake.plant("get", code, key_in(fake, 2))
        pause = fake.pause("close")
        assert cache.fetch([key_of(number) for number in (1, 2, 3, 4)], 2) == [True, False, True, True]
        assert pause.started.wait(LONG)
        assert fake.write_late() == OBJECT_BYTES
        assert all(is_right(cache, number) for number in (1, 3, 4))
        assert cache.put(key_of(2), rows_of(2), tier="host")
        fake.write_late(0x11)
        assert all(is_right(cache, number) for number in (1, 2, 3, 4))
        assert cache.stats().host_bytes == 5 * ENTRY_BYTES
        pause.release()
        assert cache.flush(LONG)
        assert cache.stats().host_bytes == 4 * ENTRY_BYTES
        assert num_host_pages(cache) == 32
        cache.check_integrity()


@pytest.mark.parametrize("code", [-600, -703, -704, -707, -801])
def test_read_that_found_nothing_frees_its_pages_at_once_and_keeps_the_client(
    fake: FakeStore, tier: MooncakeTier, code: int
) -> None:
    with tier_cache(tier, host_pages=32) as cache:
        fake.plant("get", code, key_in(fake, 2))
        assert cache.fetch([key_of(number) for number in (1, 2, 3)], 2) == [True, False, True]
        stats = stats_of(cache)
        assert (stats.quarantined_bytes, stats.failures, stats.is_open) == (0, 0, False)
        assert (stats.misses, stats.damaged) == ((0, 1) if code == -801 else (1, 0))
        assert num_host_pages(cache) == 32
        evict(cache)
        put(cache, 2)
        evict(cache)
        assert cache.fetch([key_of(2)], 2) == [True]
        assert is_right(cache, 2)
    assert len(fake.clients) == 2


@pytest.mark.parametrize("at", [10, 4095, 4096, OBJECT_BYTES - 1])
def test_changed_byte_is_a_miss_and_the_entry_can_be_stored_again(
    fake: FakeStore, tier: MooncakeTier, at: int
) -> None:
    fake.flip(key_in(fake, 1), at)
    with tier_cache(tier, host_pages=32) as cache:
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, True]
        assert stats_of(cache).damaged == 1
        assert not [key for key in fake.objects if key_of(1).hex() in key]
        put(cache, 1)
        evict(cache)
        assert cache.fetch([key_of(1)], 2) == [True]
        assert is_right(cache, 1)


@pytest.mark.parametrize("call", ["get", "exist", "register_buffer"])
def test_exception_of_the_engine_in_a_fetch_loses_no_page(
    fake: FakeStore, tier: MooncakeTier, call: str
) -> None:
    clock = Clock()
    with tier_cache(tier, clock=clock, host_pages=32) as cache:
        assert cache.flush(LONG)
        fake.plant(call, RuntimeError("of C++"))
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, False]
        assert cache.flush(LONG)
        assert (stats_of(cache).quarantined_bytes, cache.stats().host_bytes) == (0, 0)
        assert stats_of(cache).is_open
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1), key_of(2)], 2) == [True, True]
        assert num_host_pages(cache) == 32
        cache.check_integrity()


def test_pages_are_kept_for_ever_if_the_engine_cannot_be_closed(fake: FakeStore, tier: MooncakeTier) -> None:
    clock = Clock()
    kept, kept_clients = len(tier_engine._kept_for_ever), len(mooncake_tier._kept_for_ever)
    with tier_cache(tier, clock=clock, host_pages=4) as cache:
        fake.plant("get", -800)
        fake.plant("close", RuntimeError("of C++"))
        assert cache.fetch([key_of(1)], 2) == [False]
        assert cache.flush(LONG)
        assert stats_of(cache).quarantined_bytes == ENTRY_BYTES
        assert num_host_pages(cache) == 3
        assert fake.write_late() == OBJECT_BYTES
        cache.check_integrity()
        clock.advance(FIRST_BACK_OFF_S)
        evict(cache)
        assert cache.fetch([key_of(1)], 2) == [True]
        assert is_right(cache, 1)
    assert len(tier_engine._kept_for_ever) == kept + 1
    assert len(mooncake_tier._kept_for_ever) == kept_clients + 1  # with memory of its own
    assert fake.write_late() == OBJECT_BYTES  # into memory that still is there


@pytest.mark.parametrize("code", [-800, -900, -901, -600])
def test_failed_write_keeps_its_lease_until_the_client_is_closed(
    fake: FakeStore, tier: MooncakeTier, code: int
) -> None:
    clock = Clock()
    with tier_cache(tier, clock=clock, device_pages=1) as cache:
        fake.plant("put", code)
        pause = fake.pause("close")
        assert cache.put(key_of(9), rows_of(9))
        cache.stats()
        assert pause.started.wait(LONG)
        assert (cache.stats().leased_pages, stats_of(cache).quarantined_bytes) == (1, ENTRY_BYTES)
        pause.release()
        assert cache.flush(LONG)
        assert (cache.stats().leased_pages, stats_of(cache).quarantined_bytes) == (0, 0)
        assert (stats_of(cache).store_failures, stats_of(cache).is_open) == (1, True)
        clock.advance(FIRST_BACK_OFF_S)
        assert is_right(cache, 9)  # the hit offers it again
        assert cache.flush(LONG)
        assert (stats_of(cache).stored, stats_of(cache).is_open) == (1, False)


@pytest.mark.parametrize("code", [-200, -1700])
def test_store_without_space_opens_no_breaker(fake: FakeStore, tier: MooncakeTier, code: int) -> None:
    with tier_cache(tier) as cache:
        fake.plant("put", code)
        put(cache, 9)
        stats = stats_of(cache)
        assert (stats.stored, stats.store_failures, stats.is_open, stats.failures) == (0, 1, False, 0)
        assert cache.stats().leased_pages == 0
        assert stats.own[f"code {code}"] == 1
        assert is_right(cache, 9)  # the hit offers it again
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 1


def test_write_that_stored_nothing_is_offered_again(fake: FakeStore, tier: MooncakeTier) -> None:
    with tier_cache(tier) as cache:
        key = key_in(fake, 1).replace(key_of(1).hex(), key_of(9).hex())
        fake.begin_and_die(key)
        put(cache, 9)
        assert (stats_of(cache).stored, stats_of(cache).is_open) == (0, False)
        fake.lapse()
        assert is_right(cache, 9)
        assert cache.flush(LONG)
        assert stats_of(cache).stored == 1
        assert key in fake.objects


def test_read_that_hangs_lets_the_caller_go_at_its_deadline_and_opens_the_breaker(
    fake: FakeStore, tier: MooncakeTier
) -> None:
    clock = Clock()
    with tier_cache(tier, clock=clock, host_pages=32, fetch_timeout_s=5.0) as cache:
        assert cache.flush(LONG)
        pause = fake.pause("get")
        fetch = cache.begin_fetch([key_of(1)], 2)
        assert pause.started.wait(LONG)
        assert fetch.wait(0.01) == [False]
        clock.advance(5)
        assert cache.begin_fetch([key_of(2)], 2).done
        assert (stats_of(cache).is_open, stats_of(cache).late) == (True, 1)
        assert cache.put(key_of(1), rows_of(1), tier="host")
        assert is_right(cache, 1)
        pause.release()
        assert cache.flush(LONG)
        assert is_right(cache, 1)
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(2)], 2, timeout_s=LONG) == [True]
        assert cache.flush(LONG)
        assert not stats_of(cache).is_open
        assert num_host_pages(cache) == 32
        assert len(fake.clients) == 2  # it was late and not wrong
        cache.check_integrity()


@pytest.mark.parametrize("call", ["get", "close", "exist"])
def test_cache_is_closed_while_the_engine_hangs(
    fake: FakeStore, tier: MooncakeTier, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr("vitcache.cache.lower_tiers.CLOSE_S", 0.05)
    cache = tier_cache(tier, host_pages=4)
    assert cache.flush(LONG)
    [worker] = workers_of(cache)
    if call == "close":
        fake.plant("get", -800)
    pause = fake.pause(call)
    cache.begin_fetch([key_of(1)], 2)
    assert pause.started.wait(LONG)
    cache.close()
    with pytest.raises(RuntimeError, match="the cache was closed"):
        cache.begin_fetch([key_of(1)], 2)
    del cache
    fake.write_late()  # the pages still are there
    pause.release()
    worker._thread.join(LONG)
    assert not worker._thread.is_alive()
    assert all(client.is_closed for client in fake.clients)


def test_store_is_off_in_a_forked_child_and_not_in_its_parent(fake: FakeStore, tier: MooncakeTier) -> None:
    cache = tier_cache(tier, host_pages=32)
    assert cache.flush(LONG)
    pause = fake.pause("get")
    running = cache.begin_fetch([key_of(1)], 2)
    assert pause.started.wait(LONG)

    def check() -> None:
        num_calls = sum(fake.calls.values())
        assert running.wait(LONG) == [False]
        assert cache.fetch([key_of(1), key_of(2)], 2) == [False, False]
        assert cache.put(key_of(9), rows_of(9))
        assert cache.flush(LONG)
        assert is_right(cache, 9)
        with pytest.raises(RuntimeError, match="tier 'mooncake' could not erase the rows"):
            cache.forget(key_of(9))
        cache.check_integrity()
        cache.close()
        for call in (lambda: tier.exists([]), lambda: tier.metrics()):
            with pytest.raises(RuntimeError, match="not in this one"):
                call()
        tier.close()
        assert (sum(fake.calls.values()), fake.mistakes) == (num_calls, [])
        with pytest.raises(
            RuntimeError, match=f"process {os.getppid()} had used a Mooncake store when it forked"
        ):
            tier.open()
        assert (sum(fake.calls.values()), fake.mistakes) == (num_calls, [])

    assert run_in_child(check) == 0
    pause.release()
    assert running.wait(LONG) == [True]
    assert is_right(cache, 1)
    cache.close()


def test_rows_of_earlier_weights_are_not_found_after_a_revoke_or_a_loss(
    fake: FakeStore, tier: MooncakeTier
) -> None:
    other = MooncakeTier(fake.address, worth=None)
    with tier_cache(tier, host_pages=32) as first:
        assert first.flush(LONG)
        with tier_cache(other, host_pages=32) as second:
            assert second.fetch([key_of(1)], 2) == [True]
        first.advance_epoch(weights_name="weights")
        with tier_cache(other, host_pages=32) as second:
            assert second.fetch([key_of(number) for number in (1, 2, 3, 4)], 2) == [False] * 4
            put(second, 5)
        assert first.fetch([key_of(5), key_of(1)], 2) == [True, False]
        for key in [key for key in fake.objects if "/generation/" in key]:
            del fake.objects[key]
        with tier_cache(other, host_pages=32) as second:
            put(second, 6)
            evict(first)
            assert first.fetch([key_of(5), key_of(6)], 2) == [True, False]  # with the number of before
            put(first, 7)
            assert second.fetch([key_of(5), key_of(7)], 2) == [False, False]


def test_failed_revoke_is_owed_and_nothing_is_found_until_it_is_done(
    fake: FakeStore, tier: MooncakeTier, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    with tier_cache(tier, clock=clock, host_pages=32) as cache:
        assert cache.flush(LONG)
        fake.plant("upsert", 0)  # and stores nothing
        cache.advance_epoch(weights_name="weights")
        assert "has not revoked the name of the old weights yet" in caplog.text
        assert cache.fetch([key_of(1)], 2) == [False]
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1)], 2) == [False]
        assert cache.flush(LONG)
        assert (fake.calls["upsert"], stats_of(cache).failures) == (2, 1)
        put(cache, 1)
        evict(cache)
        assert cache.fetch([key_of(1)], 2) == [True]


def test_erase_leaves_entries_of_other_tenants_and_keys(fake: FakeStore, tier: MooncakeTier) -> None:
    with tier_cache(tier, device_pages=64, host_pages=32) as cache:
        put(cache, 21, 22, tenant="a")
        put(cache, 31, 32, tenant="b")
        evict(cache)
        assert cache.forget_tenant("a") == 2
        assert cache.forget(key_of(1)) == 1
        assert cache.fetch([key_of(number) for number in (1, 2, 3, 4)], 2) == [False, True, True, True]
        assert cache.fetch([key_of(31), key_of(32)], 2, tenant="b") == [True, True]
        assert cache.fetch([key_of(21), key_of(22)], 2, tenant="a") == [False, False]
        fake.plant("remove_by_regex", -900)
        with pytest.raises(RuntimeError, match="could not erase the rows"):
            cache.forget(key_of(2))


def test_one_of_two_caches_stores_an_entry_with_single_flight(fake: FakeStore) -> None:
    tiers = [MooncakeTier(fake.address, worth=None, single_flight=True) for _ in range(2)]
    with tier_cache(tiers[0], host_pages=32) as first, tier_cache(tiers[1], host_pages=32) as second:
        assert first.flush(LONG)
        assert second.flush(LONG)
        pause = fake.pause("ranges")
        assert first.put(key_of(1), rows_of(1))
        first.stats()
        assert pause.started.wait(LONG)
        put(second, 1)
        assert (stats_of(second).stored, stats_of(second).skipped_stores) == (0, 1)
        pause.release()
        assert first.flush(LONG)
        assert stats_of(first).stored == 1
        assert is_right(second, 1)  # the hit offers it again
        assert second.flush(LONG)
        evict(second)
        assert second.fetch([key_of(1)], 2) == [True]
        assert (fake.calls["ranges"], stats_of(second).stored_bytes) == (1, 0)


def test_master_that_is_away_at_the_beginning_is_tried_again(fake: FakeStore, tier: MooncakeTier) -> None:
    clock = Clock()
    fake.stop()
    with tier_cache(tier, clock=clock, host_pages=32) as cache:
        assert cache.flush(LONG)
        assert (stats_of(cache).is_open, stats_of(cache).failures) == (True, 1)
        assert cache.fetch([key_of(1)], 2) == [False]
        fake.start()
        clock.advance(FIRST_BACK_OFF_S)
        assert cache.fetch([key_of(1)], 2) == [True]
        wait_until(lambda: not stats_of(cache).is_open)
