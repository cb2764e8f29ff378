"""Order between streams: each access to a page waits for the accesses that it conflicts with."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable

import pytest
import torch
from failure import Failure, fail
from stream_model import StreamModel

from vitcache.cache.ledger import Ledger
from vitcache.pages.entry import Entry
from vitcache.pages.lease import Lease
from vitcache.pages.pool import PagePool
from vitcache.pages.reservation import Reservation
from vitcache.testing import forget_streams, inspect

KEYS = [bytes([number]) * 32 for number in range(8)]


def read(model: StreamModel, lease: Lease) -> None:
    """Read a lease's pages on the current stream, as a kernel would."""
    lease.use()
    for page in lease.pages:
        model.access((lease.tier, page), write=False)


def exercise(model: StreamModel, seed: int, *, steps: int = 300) -> None:
    """Drive a small cache from four streams, with failures. `model` records the races."""
    rng = random.Random(seed)
    cache = model.make_cache(6, 5)
    leases: list[Lease] = []
    reservations: list[Reservation] = []
    for _ in range(steps):
        with model.on(rng.choice("abcd")):
            action = rng.random()
            if action < 0.45:
                cache.put(rng.choice(KEYS), torch.zeros(rng.randint(0, 4), 2))
            elif action < 0.5:
                with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Failure):
                    patch.setattr(PagePool, "write", fail)
                    cache.put(rng.choice(KEYS), torch.zeros(1, 2))
            elif action < 0.75:
                lease = cache.get(rng.choice(KEYS))
                if lease is not None:
                    read(model, lease)
                    leases.append(lease)
            elif action < 0.78:
                with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Failure):
                    if rng.random() < 0.2:
                        patch.setattr(PagePool, "copy_pages", fail)
                    cache.expect([rng.randint(0, 3)])
            elif leases and action < 0.82:
                read(model, rng.choice(leases))
            elif action < 0.85:
                lease = rng.choice(leases) if leases else None
                reservation = cache.reserve(rng.choice(KEYS), 1) if lease is None else cache.promote(lease)
                if reservation is not None:
                    reservation.write(
                        torch.zeros(reservation.num_rows, 2) if lease is None else lease.to_tensor()
                    )
                    reservations.append(reservation)
                if lease is not None:
                    read(model, lease)
            elif reservations and action < 0.88:
                rng.choice([Reservation.commit, Reservation.cancel])(reservations.pop())
            elif leases:
                leases.pop(rng.randrange(len(leases))).release()
            if rng.random() < 0.02:
                rng.choice([cache.clear, cache.advance_epoch])()
    cache.check_integrity()


@pytest.mark.parametrize("seed", range(10))
def test_random_calls_on_four_streams_cause_no_races(seed: int) -> None:
    model = StreamModel()
    exercise(model, seed)
    assert model.num_waits > 0
    assert model.races == []


def drop_all_waits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamModel, "wait", lambda self, fence: None)


def forget_readers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Entry, "fences", lambda self: (self.written,))


def forget_the_writer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Entry, "fences", lambda self: tuple(self.reads.values()))


def forget_fences_of_free_pages(patch: pytest.MonkeyPatch) -> None:
    take = PagePool.allocate
    patch.setattr(PagePool, "allocate", lambda self, count: (take(self, count)[0], set()))


def read_without_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "use", lambda self: None)


def forget_which_stream_read(patch: pytest.MonkeyPatch) -> None:
    release = Lease.release

    def forget(lease: Lease) -> None:
        forget_streams(lease)
        release(lease)

    patch.setattr(Lease, "release", forget)


def fence_before_the_copy(patch: pytest.MonkeyPatch) -> None:
    finish = Ledger.finish_write

    def too_early(ledger: Ledger, pending, fence, *, failed=False) -> bool:  # type: ignore[no-untyped-def]
        if fence.event is not None:
            fence.event.clock.clear()
        return finish(ledger, pending, fence, failed=failed)

    patch.setattr(Ledger, "finish_write", too_early)


def copy_without_a_wait(patch: pytest.MonkeyPatch) -> None:
    wait = StreamModel.wait
    patch.setattr(StreamModel, "wait", lambda self, fence: self.stream == "copy" or wait(self, fence))


def write_or_read_before_the_copy(patch: pytest.MonkeyPatch) -> None:
    wait = StreamModel.wait
    patch.setattr(StreamModel, "wait", lambda self, fence: fence.stream == "copy" or wait(self, fence))


def forget_the_copies_of_leftover_pages(patch: pytest.MonkeyPatch) -> None:
    finish = Ledger.finish_write

    def forget(ledger: Ledger, pending, fence, *, failed=False) -> bool:  # type: ignore[no-untyped-def]
        pending.copies.fences = set()
        return finish(ledger, pending, fence, failed=failed)

    patch.setattr(Ledger, "finish_write", forget)


def forget_reads_of_early_copies(patch: pytest.MonkeyPatch) -> None:
    finish = Ledger.finish_early_copies

    def forget(ledger: Ledger, pending, fence, *, failed=False) -> None:  # type: ignore[no-untyped-def]
        finish(ledger, pending, fence, failed=failed)
        for demotion in pending.demotions:
            demotion.entry.reads.clear()

    patch.setattr(Ledger, "finish_early_copies", forget)


@pytest.mark.parametrize(
    "plant",
    [
        forget_reads_of_early_copies,
        copy_without_a_wait,
        write_or_read_before_the_copy,
        forget_the_copies_of_leftover_pages,
        drop_all_waits,
        forget_readers,
        forget_the_writer,
        forget_fences_of_free_pages,
        read_without_use,
        forget_which_stream_read,
        fence_before_the_copy,
    ],
)
def test_planted_fault_is_reported_as_a_race(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    model = StreamModel()
    for seed in range(10):
        exercise(model, seed)
    assert model.races


def test_failed_put_keeps_the_fences_of_its_queued_copies() -> None:
    model = StreamModel()
    cache = model.make_cache(2, 2)
    with model.on("a"):
        cache.put(KEYS[0], torch.zeros(2, 2))
    with pytest.MonkeyPatch.context() as patch, model.on("b"):
        patch.setattr(PagePool, "write", fail)
        with pytest.raises(Failure):
            cache.put(KEYS[1], torch.zeros(2, 2))  # the demotion of 0 was queued
    with model.on("c"):
        assert cache.put(KEYS[2], torch.zeros(2, 2))
        assert cache.put(KEYS[3], torch.zeros(2, 2))  # writes the host pages that the failed put has written
    assert model.races == []


def test_put_that_fails_to_wait_keeps_the_fences_of_its_pages() -> None:
    model = StreamModel()
    cache = model.make_cache(1)
    with model.on("a"):
        cache.put(KEYS[0], torch.zeros(1, 2))
        with cache.get(KEYS[0]) as lease, model.on("b"):
            read(model, lease)
    with pytest.MonkeyPatch.context() as patch, model.on("c"):
        patch.setattr(model, "wait", fail)
        with pytest.raises(Failure):
            cache.put(KEYS[1], torch.zeros(1, 2))
    with model.on("d"):
        assert cache.put(KEYS[1], torch.zeros(1, 2))
    assert model.races == []


def test_single_stream_never_waits() -> None:
    model = StreamModel()
    cache = model.make_cache(2)
    for key in KEYS:
        assert cache.put(key, torch.zeros(2, 2))
        with cache.get(key) as lease:
            read(model, lease)
    assert cache.stats().evictions > 0
    assert model.num_waits == 0
    assert model.races == []


def test_victims_are_copied_on_the_copy_stream_and_only_their_writer_waits() -> None:
    model = StreamModel()
    cache = model.make_cache(2, 2)
    cache.put(KEYS[0], torch.zeros(2, 2))
    reservation = cache.reserve(KEYS[1], 1)
    assert model.num_waits == 1  # the copy stream waits for the first put
    assert model.clocks["copy"]["copy"] == 4  # two reads and two writes
    assert model.clocks["main"]["copy"] == 0  # an encode on this stream would not wait for the copies
    with reservation:
        reservation.write(torch.zeros(1, 2))
        assert model.clocks["main"]["copy"] == 4
        assert reservation.commit()
    with model.on("other"):
        assert cache.put(KEYS[2], torch.zeros(1, 2))  # uses the leftover page
        with cache.get(KEYS[0]) as lease:
            read(model, lease)
    # The stream "other" waited only for the copies.
    assert model.clocks["other"]["main"] == model.clocks["copy"]["main"]
    assert model.races == []


def test_expect_copies_at_once_and_only_the_later_put_waits() -> None:
    model = StreamModel()
    cache = model.make_cache(2, 2)
    cache.put(KEYS[0], torch.zeros(2, 2))
    cache.expect([2])
    assert model.clocks["copy"]["copy"] == 4  # two reads and two writes
    assert model.num_waits == 1  # the copy stream waits for the first put
    cache.put(KEYS[1], torch.zeros(2, 2))
    assert model.clocks["copy"]["copy"] == 4
    assert model.clocks["main"]["copy"] == 4
    assert cache.stats().demotions == 1
    assert model.locked_calls == []
    assert model.races == []


def test_commit_without_a_write_still_waits_for_the_copies() -> None:
    model = StreamModel()
    cache = model.make_cache(1, 1)
    cache.put(KEYS[0], torch.zeros(1, 2))
    assert cache.reserve(KEYS[1], 1).commit()
    assert cache.put(KEYS[1], torch.zeros(1, 2))
    assert model.races == []


def test_copy_that_fails_after_queueing_leaves_a_fence_behind_its_work() -> None:
    model = StreamModel()
    cache = model.make_cache(1, 1)
    cache.put(KEYS[0], torch.zeros(1, 2))
    pool = type(inspect(cache).host_pool)
    copy_pages = pool.copy_pages

    def fail_late(*arguments: object) -> None:
        copy_pages(*arguments)  # type: ignore[arg-type]
        raise Failure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "copy_pages", fail_late)
        with pytest.raises(Failure):
            cache.put(KEYS[1], torch.zeros(1, 2))
    with model.on("other"):
        assert cache.put(KEYS[1], torch.zeros(1, 2))
        assert cache.put(KEYS[2], torch.zeros(1, 2))
    assert model.races == []


def test_released_leases_share_one_fence_per_stream() -> None:
    model = StreamModel()
    cache = model.make_cache(8)
    for key in KEYS:
        cache.put(key, torch.zeros(1, 2))
    for stream in "ab":
        with model.on(stream):
            for key in KEYS:
                with cache.get(key) as lease:
                    read(model, lease)
    before = model.num_records
    cache.stats()
    assert model.num_records - before == 2


def test_use_waits_for_the_writer_once_per_stream() -> None:
    model = StreamModel()
    cache = model.make_cache(1)
    cache.put(KEYS[0], torch.zeros(1, 2))
    with cache.get(KEYS[0]) as lease, model.on("other"):
        lease.use()
        lease.use()
    assert model.num_waits == 1


def test_to_tensor_orders_its_stream_as_use_does() -> None:
    model = StreamModel()
    cache = model.make_cache(1)
    cache.put(KEYS[0], torch.zeros(1, 2))
    with cache.get(KEYS[0]) as lease, model.on("other"):
        lease.to_tensor()
    assert model.num_waits == 1
    cache.put(KEYS[1], torch.zeros(1, 2))
    assert model.num_waits == 2


def test_cache_makes_no_cuda_call_and_logs_nothing_under_its_lock(caplog: pytest.LogCaptureFixture) -> None:
    model = StreamModel()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            model.note_call("log")

    handler = Handler()
    logging.getLogger("vitcache").addHandler(handler)
    try:
        exercise(model, seed=0)
        cache = model.cache
        assert not cache.put(KEYS[0], torch.zeros(100, 2))
        for key in KEYS:
            cache.put(key, torch.zeros(1, 2))
        cache.close()
    finally:
        logging.getLogger("vitcache").removeHandler(handler)
    assert model.num_records > 0
    assert model.locked_calls == []


def test_stream_model_reports_a_call_under_the_lock() -> None:
    model = StreamModel()
    cache = model.make_cache(1)
    with inspect(cache).lock:
        fence = model.record("main")
        assert model.locked_calls == ["record"]
        del fence
    assert model.locked_calls == ["record", "destroy an event"]


def test_drain_that_fails_to_record_a_fence_loses_no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    model = StreamModel()
    cache = model.make_cache(1)
    cache.put(KEYS[0], torch.zeros(1, 2))
    with cache.get(KEYS[0]) as lease:
        read(model, lease)
    with monkeypatch.context() as patch:
        patch.setattr(model, "record", fail)
        with pytest.raises(Failure):
            cache.stats()
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_memory_is_allocated_and_freed_only_on_an_idle_device() -> None:
    model = StreamModel()
    cache = model.make_cache(1, 1)
    assert model.num_synchronizations == 1
    cache.put(KEYS[0], torch.zeros(1, 2))
    lease = cache.get(KEYS[0])
    cache.close()
    assert model.num_synchronizations == 2  # the host tier is freed; the lease keeps the device tier alive
    lease.release()
    assert model.num_synchronizations == 3
