"""Order between streams: each access to a page waits for the accesses that it conflicts with."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from failure import Failure, fail
from stream_model import StreamModel

from vitcache._native import Ledger, Pending, ReleaseBatch, use_leases
from vitcache.cache.coordinator import CacheCoordinator
from vitcache.cache.host_copies import HostCopies
from vitcache.device.streams import CPU_STREAM, Fence
from vitcache.pages import reservation as reservations
from vitcache.pages.lease import Lease, release_all
from vitcache.pages.pool import PagePool
from vitcache.pages.reservation import Reservation
from vitcache.testing import inspect

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
    open_reservations: list[Reservation] = []
    for _ in range(steps):
        with model.on(rng.choice("abcd")):
            action = rng.random()
            if action < 0.45:
                rows = torch.zeros(rng.randint(0, 4), rng.choice([1, 2, 2]))
                cache.put(rng.choice(KEYS), rows, tier=rng.choice(["device", "device", "host", "both"]))
            elif action < 0.5:
                with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Failure):
                    patch.setattr(PagePool, rng.choice(["write", "copy_pages"]), fail)
                    cache.put(rng.choice(KEYS), torch.zeros(1, 2), tier=rng.choice(["device", "both"]))
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
                contiguous = rng.random() < 0.3
                if lease is None or rng.random() < 0.2:
                    shape = (1, 2) if lease is None else (lease.num_rows, lease.row_width)
                    reservation = cache.reserve(
                        rng.choice(KEYS), shape[0], row_width=shape[1], contiguous=contiguous
                    )
                else:
                    reservation = cache.promote(lease, contiguous=contiguous)
                if reservation is not None:
                    if lease is None:
                        reservation.write(torch.zeros(reservation.num_rows, 2))
                    else:
                        reservation.write(lease if rng.random() < 0.5 else lease.to_tensor())
                    open_reservations.append(reservation)
            elif open_reservations and action < 0.88:
                end = rng.choice([Reservation.commit, Reservation.commit_lease, Reservation.cancel])
                lease = end(open_reservations.pop())
                if isinstance(lease, Lease):
                    read(model, lease)
                    leases.append(lease)
            elif action < 0.89:
                cache.discard(rng.choice(KEYS), tier=rng.choice([None, "host"]))
            elif action < 0.91:
                rng.choice([cache.demote, cache.copy_to_host])(rng.choice(KEYS))
            elif action < 0.92:
                release_all(leases)
                while open_reservations:
                    open_reservations.pop().cancel()
                with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Failure):
                    if rng.random() < 0.2:
                        patch.setattr(PagePool, "move_pages", fail)
                    assert cache.compact()
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
    finish = ReleaseBatch.finish

    def forget(batch: ReleaseBatch, fences: list[Fence]) -> None:
        finish(batch, [Fence(fence.stream, None) for fence in fences])

    patch.setattr(ReleaseBatch, "finish", forget)


def forget_some_readers(patch: pytest.MonkeyPatch) -> None:
    streams = ReleaseBatch.streams
    patch.setattr(ReleaseBatch, "streams", lambda batch: streams(batch)[1:])


def forget_which_stream_read(patch: pytest.MonkeyPatch) -> None:
    def forget(items: Any, first: int, stream: int, has_waited: bool) -> Any:
        return use_leases(items, first, CPU_STREAM, has_waited)  # reads on the CPU are not recorded

    patch.setattr("vitcache.pages.lease.use_leases", forget)


def read_without_use(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lease, "use", lambda self: None)


def copy_leased_rows_without_use(patch: pytest.MonkeyPatch) -> None:
    write = Reservation.write

    def write_without_use(reservation: Reservation, rows: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            if isinstance(rows, Lease):
                read_without_use(inner)
            write(reservation, rows)

    patch.setattr(Reservation, "write", write_without_use)


def move_without_a_wait(patch: pytest.MonkeyPatch) -> None:
    compact = CacheCoordinator.compact

    def compact_without_fences(coordinator: CacheCoordinator) -> bool:
        with pytest.MonkeyPatch.context() as inner:
            forget_fences_of_pages(inner)
            return compact(coordinator)

    patch.setattr(CacheCoordinator, "compact", compact_without_fences)


def forget_the_moves(patch: pytest.MonkeyPatch) -> None:
    compact = CacheCoordinator.compact

    def compact_without_a_fence(coordinator: CacheCoordinator) -> bool:
        with pytest.MonkeyPatch.context() as inner:
            change_fences(inner, lambda _, fence: Fence(fence.stream, None))
            return compact(coordinator)

    patch.setattr(CacheCoordinator, "compact", compact_without_a_fence)


def change_fences(patch: pytest.MonkeyPatch, change: Callable[[Pending, Fence], Fence]) -> None:
    """Finish each write and each early copy with another fence."""
    finish = Ledger.finish

    def finish_wrong(ledger: Ledger, pending: Pending, fence: Fence | None, failed: bool) -> bool:
        return finish(ledger, pending, fence and change(pending, fence), failed)

    patch.setattr(Ledger, "finish", finish_wrong)


def forget_the_writer(patch: pytest.MonkeyPatch) -> None:
    change_fences(patch, lambda pending, fence: Fence(fence.stream, None) if pending.pages else fence)


def forget_early_copies(patch: pytest.MonkeyPatch) -> None:
    change_fences(patch, lambda pending, fence: fence if pending.pages else Fence(fence.stream, None))


def fence_before_the_copy(patch: pytest.MonkeyPatch) -> None:
    def clear(pending: Pending, fence: Fence) -> Fence:
        if fence.event is not None:  # None: the CPU wrote the rows
            fence.event.clock.clear()
        return fence

    change_fences(patch, clear)


def forget_the_fence_behind_the_copies(patch: pytest.MonkeyPatch) -> None:
    set_copied = Pending.set_copied
    patch.setattr(
        Pending, "set_copied", lambda pending, fence: set_copied(pending, Fence(fence.stream, None))
    )


def forget_the_fence_behind_the_host_copy(patch: pytest.MonkeyPatch) -> None:
    set_copied = Pending.set_host_copied
    patch.setattr(
        Pending, "set_host_copied", lambda pending, fence: set_copied(pending, Fence(fence.stream, None))
    )


def write_host_pages_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StreamModel, "wait_on_host", lambda self, fence: None)


def copy_rows_before_they_are_written(patch: pytest.MonkeyPatch) -> None:
    write_through = HostCopies.write_through

    def copy_at_once(copies: HostCopies, pending: Pending, written: Fence) -> None:
        write_through(copies, pending, copies._timeline.record(copies._timeline.copy_stream))

    patch.setattr(HostCopies, "write_through", copy_at_once)


def forget_the_fences_of_the_host_copy(patch: pytest.MonkeyPatch) -> None:
    host_copy = Pending.host_copy.fget  # type: ignore[attr-defined]

    def without_fences(pending: Pending) -> Any:
        found = host_copy(pending)
        return found and (*found[:2], [])

    patch.setattr(Pending, "host_copy", property(without_fences))


def keep_no_fence_behind_failed_copies(patch: pytest.MonkeyPatch) -> None:
    finish = Ledger.finish

    def forget(ledger: Ledger, pending: Pending, fence: Fence | None, failed: bool) -> bool:
        return finish(ledger, pending, None if failed else fence, failed)

    patch.setattr(Ledger, "finish", forget)


def forget_fences_of_pages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pending, "fences", property(lambda pending: []))


def forget_fences_before_copies(patch: pytest.MonkeyPatch) -> None:
    copy = HostCopies.demote

    def copy_at_once(copies: HostCopies, pending: Pending) -> None:
        with pytest.MonkeyPatch.context() as inner:
            forget_fences_of_pages(inner)
            copy(copies, pending)

    patch.setattr(HostCopies, "demote", copy_at_once)


def forget_fences_before_writes(patch: pytest.MonkeyPatch) -> None:
    use = Reservation.use

    def use_at_once(reservation: Reservation) -> None:
        with pytest.MonkeyPatch.context() as inner:
            forget_fences_of_pages(inner)
            use(reservation)

    patch.setattr(Reservation, "use", use_at_once)


def copy_without_a_wait(patch: pytest.MonkeyPatch) -> None:
    wait = StreamModel.wait
    patch.setattr(StreamModel, "wait", lambda self, fence: self.stream == "copy" or wait(self, fence))


def write_or_read_before_the_copy(patch: pytest.MonkeyPatch) -> None:
    wait = StreamModel.wait
    patch.setattr(
        StreamModel, "wait", lambda self, fence: fence.stream == self.copy_stream or wait(self, fence)
    )


def join_only_the_current_stream(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reservations, "join", lambda timeline, streams: timeline.record(timeline.current()))


PLANTS = [
    drop_all_waits,
    forget_readers,
    forget_some_readers,
    forget_which_stream_read,
    read_without_use,
    copy_leased_rows_without_use,
    move_without_a_wait,
    forget_the_moves,
    forget_the_writer,
    forget_early_copies,
    fence_before_the_copy,
    forget_the_fence_behind_the_copies,
    forget_the_fence_behind_the_host_copy,
    write_host_pages_at_once,
    copy_rows_before_they_are_written,
    forget_the_fences_of_the_host_copy,
    keep_no_fence_behind_failed_copies,
    forget_fences_of_pages,
    forget_fences_before_copies,
    forget_fences_before_writes,
    copy_without_a_wait,
    write_or_read_before_the_copy,
    join_only_the_current_stream,
]


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_fault_is_reported_as_a_race(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    model = StreamModel()
    for seed in range(40):
        exercise(model, seed)
        if model.races:
            break
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
    assert model.inconsistent_calls == []
    assert model.races == []


def test_later_writer_of_leased_host_pages_waits_for_the_copy_from_them() -> None:
    model = StreamModel()
    cache = model.make_cache(1, 1)
    with model.on("a"):
        cache.put(KEYS[0], torch.zeros(1, 2), tier="host")
    with model.on("b"), cache.get(KEYS[0]) as lease, cache.promote(lease, contiguous=True) as reservation:
        reservation.write(lease)
        assert reservation.commit()
    assert cache.discard(KEYS[0], tier="host")
    with model.on("c"):
        assert cache.put(KEYS[1], torch.zeros(1, 2), tier="host")  # writes the page that b reads
    assert model.clocks["host"]["b"] > 0  # the host waited for the copy
    assert model.races == []
    assert model.inconsistent_calls == []


def test_demote_waits_for_nothing_and_the_next_writer_of_the_pages_for_all_readers() -> None:
    model = StreamModel()
    cache = model.make_cache(1, 1)
    with model.on("a"):
        cache.put(KEYS[0], torch.zeros(1, 2))
    with model.on("b"), cache.get(KEYS[0]) as lease:
        read(model, lease)
    with model.on("d"):
        assert cache.demote(KEYS[0])
        assert model.clocks["d"] == {}  # the copy runs on the copy stream
    assert model.clocks["copy"]["a"] > 0
    with model.on("c"), cache.reserve(KEYS[1], 1, contiguous=True) as reservation:
        reservation.write(torch.zeros(1, 2))
        assert model.clocks["c"]["b"] > 0
        assert model.clocks["c"]["copy"] > 0
        assert reservation.commit()
    assert model.races == []
    assert model.inconsistent_calls == []


def test_moves_wait_for_all_users_of_the_pages_and_readers_for_the_moves() -> None:
    model = StreamModel()
    cache = model.make_cache(4, 4)
    for stream, key in zip("abc", KEYS, strict=False):
        with model.on(stream):
            assert cache.put(key, torch.zeros(1, 2))
    with model.on("d"), cache.get(KEYS[0]) as lease:
        read(model, lease)
    with model.on("d"), cache.get(KEYS[2]) as lease:
        read(model, lease)
    assert cache.copy_to_host(KEYS[1])
    assert cache.discard(KEYS[0])
    with model.on("main"):
        assert cache.compact()
        assert all(model.clocks["main"][stream] > 0 for stream in ("b", "c", "d", "copy"))
    assert model.num_synchronizations == 1  # when the memory was allocated
    with model.on("other"), cache.get(KEYS[2]) as lease:
        read(model, lease)
        assert model.clocks["other"]["main"] > 0
    with model.on("other"):
        assert cache.put(KEYS[3], torch.zeros(2, 2))  # in the pages that the moves have read
    assert model.races == []
    assert model.inconsistent_calls == []


def test_compact_of_entries_of_one_stream_waits_for_nothing() -> None:
    model = StreamModel()
    cache = model.make_cache(3)
    for key in KEYS[:3]:
        assert cache.put(key, torch.zeros(1, 2))
    assert cache.discard(KEYS[0])
    assert cache.compact()
    assert model.num_waits == 0
    assert model.races == []


def test_moves_that_fail_after_queueing_leave_a_fence_behind_their_work() -> None:
    model = StreamModel()
    cache = model.make_cache(3)
    for key in KEYS[:3]:
        assert cache.put(key, torch.zeros(1, 2))
    assert cache.discard(KEYS[0])
    pool = type(inspect(cache).entry(KEYS[1]).memory)
    move_pages = pool.move_pages

    def fail_late(*arguments: object) -> None:
        move_pages(*arguments)  # type: ignore[arg-type]
        raise Failure

    with pytest.MonkeyPatch.context() as patch, model.on("a"):
        patch.setattr(pool, "move_pages", fail_late)
        with pytest.raises(Failure):
            cache.compact()
    with model.on("b"):
        assert cache.put(KEYS[4], torch.zeros(3, 2))
    assert model.races == []
    assert model.inconsistent_calls == []


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
    pool = type(inspect(cache).entry(KEYS[0]).memory)
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


def test_cache_is_consistent_at_each_cuda_call_and_logs_nothing_while_it_drains(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = StreamModel()
    logged: list[bool] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            model.note_call("log")
            logged.append(inspect(model.cache).is_draining)

    handler = Handler()
    logging.getLogger("vitcache").addHandler(handler)
    try:
        exercise(model, seed=0)
        cache = model.cache
        assert cache is not None
        assert not cache.put(KEYS[0], torch.zeros(100, 2))
        for key in KEYS:
            cache.put(key, torch.zeros(1, 2))
        cache.close()
    finally:
        logging.getLogger("vitcache").removeHandler(handler)
    assert model.num_records > 0
    assert logged
    assert not any(logged)
    assert model.inconsistent_calls == []


def test_stream_model_reports_a_call_in_an_inconsistent_cache() -> None:
    model = StreamModel()
    cache = model.make_cache(1)
    pages, _ = inspect(cache).device_pool.allocate(1)  # a page without an owner
    fence = model.record(model.copy_stream)
    violation = "device pages [0] do not have exactly one owner"
    assert model.inconsistent_calls == [f"record: {violation}"]
    del fence
    assert model.inconsistent_calls == [f"record: {violation}", f"destroy an event: {violation}"]
    inspect(cache).device_pool.free(pages, [])
    model.record(model.copy_stream)
    assert len(model.inconsistent_calls) == 2


def test_event_that_a_native_call_destroys_finds_a_consistent_cache() -> None:
    model = StreamModel()
    cache = model.make_cache(2, 2)
    for step in range(30):  # each put reuses pages, so it destroys the event of an earlier write
        with model.on("ab"[step % 2]):
            assert cache.put(KEYS[step % len(KEYS)], torch.zeros(1 + step % 2, 2))
    destroyed: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        note_call = StreamModel.note_call

        def note(self: StreamModel, name: str) -> None:
            destroyed.append(name == "destroy an event")
            note_call(self, name)

        patch.setattr(StreamModel, "note_call", note)
        cache.clear()
        assert cache.put(KEYS[0], torch.zeros(2, 2))
    assert any(destroyed)
    assert model.inconsistent_calls == []


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
