"""A `put` that fails, is interrupted or is superseded: no page is lost, and no wrong rows are read."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, make_rows, present, read
from caches import make_cache
from failure import Failure, fail
from interrupts import act_at, interrupt
from stream_model import StreamModel
from torch import Tensor

from vitcache.cache import coordinator, embedding_cache, host_copies
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages import host_reservation, pool, reservation
from vitcache.pages.pool import PagePool
from vitcache.testing import inspect

TRACED = {
    module.__file__
    for module in (coordinator, embedding_cache, host_copies, host_reservation, pool, reservation)
}


@pytest.mark.parametrize("method", ["write", "copy_pages"])
def test_put_with_a_failed_copy_inserts_nothing_and_stays_consistent(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(3, 3)
    for number in range(3):
        cache.put(KEYS[number], make_rows(1, float(number)))

    with monkeypatch.context() as patch:
        patch.setattr(PagePool, method, fail)
        with pytest.raises(Failure):
            cache.put(KEYS[5], make_rows(2))
    cache.check_integrity()
    assert present(cache) == [2]
    stats = cache.stats()
    assert (stats.insertions, stats.evictions, stats.demotions) == (3, 2, 0)
    assert (stats.device_bytes, stats.host_bytes) == (PAGE_BYTES, 0)
    assert cache.put(KEYS[5], make_rows(2, 5.0))
    assert torch.equal(read(cache, KEYS[5]), make_rows(2, 5.0))


def put(cache: EmbeddingCache) -> None:
    cache.put(KEYS[8], torch.ones(3, 2))


def put_narrow_rows(cache: EmbeddingCache) -> None:
    cache.put(KEYS[8], torch.ones(5, 1))


def put_in_host(cache: EmbeddingCache) -> None:
    cache.put(KEYS[8], torch.ones(3, 2), tier="host")


def put_in_both(cache: EmbeddingCache) -> None:
    cache.put(KEYS[8], torch.ones(3, 2), tier="both")


def reserve_and_commit_lease(cache: EmbeddingCache) -> None:
    with cache.reserve(KEYS[8], 3) as reservation:  # type: ignore[union-attr]
        reservation.write(torch.ones(3, 2))
        reservation.commit_lease().to_tensor()  # type: ignore[union-attr]


def reserve_and_commit(cache: EmbeddingCache) -> None:
    with cache.reserve(KEYS[8], 3) as reservation:  # type: ignore[union-attr]
        reservation.write(torch.ones(3, 2))
        reservation.commit()


def reserve_and_cancel(cache: EmbeddingCache) -> None:
    with cache.reserve(KEYS[8], 3) as reservation:  # type: ignore[union-attr]
        reservation.write(torch.ones(3, 2))


def get(cache: EmbeddingCache) -> None:
    cache.get(KEYS[3]).to_tensor()  # type: ignore[union-attr]


def get_with_an_argument_that_python_reads(cache: EmbeddingCache) -> None:
    cache.get(KEYS[3], num_rows=torch.tensor(1)).to_tensor()  # type: ignore[call-overload]


def get_many(cache: EmbeddingCache) -> None:
    for lease in cache.get_many(KEYS[:6], num_rows=[1, None, 1, 1, 2, 1]):
        if lease is not None:
            lease.to_tensor()


def expect(cache: EmbeddingCache) -> None:
    cache.expect([2, 1])


def promote(cache: EmbeddingCache) -> None:
    with cache.get(KEYS[0]) as lease, cache.promote(lease) as reservation:  # type: ignore[union-attr]
        reservation.write(lease.to_tensor())
        reservation.commit()


CALLS: list[Callable[[EmbeddingCache], object]] = [
    put,
    put_narrow_rows,
    put_in_host,
    put_in_both,
    reserve_and_commit,
    reserve_and_commit_lease,
    reserve_and_cancel,
    get,
    get_with_an_argument_that_python_reads,
    get_many,
    expect,
    promote,
    EmbeddingCache.stats,
]


def make_busy(model: StreamModel) -> EmbeddingCache:
    """A cache with entries in both tiers, a released lease and an abandoned reservation, on two streams."""
    cache = model.make_cache(5, 4)
    for number in range(6):  # entry 0 is demoted
        with model.on("ab"[number % 2]):
            assert cache.put(KEYS[number], torch.full((1, 2), float(number)))
    with model.on("c"):
        reservation = cache.reserve(KEYS[9], 1)  # demotes entry 1
        assert reservation is not None
        reservation.write(torch.ones(1, 2))
        cache.get(KEYS[4]).to_tensor()  # type: ignore[union-attr]
    del reservation
    return cache


@pytest.mark.parametrize("call", CALLS)
def test_call_interrupted_at_any_line_loses_no_page_lease_or_fence(
    call: Callable[[EmbeddingCache], object],
) -> None:
    line = 1
    while True:
        model = StreamModel()
        cache = make_busy(model)
        with model.on("d"):
            is_interrupted = interrupt(partial(call, cache), line, TRACED)
        gc.collect(1)  # a full collection takes longer than the rest of the test
        assert cache.stats().leased_pages == 0, line
        cache.check_integrity()
        inside = inspect(cache)
        assert (inside.device_pool.num_available, inside.host_pool.num_available) == (5, 4), line
        for number in range(9):  # writes each page of both tiers
            with model.on("main"):
                assert cache.put(KEYS[number], torch.ones(1, 2))
        assert (model.races, model.inconsistent_calls) == ([], []), line
        if not is_interrupted:
            break
        line += 1
    assert line > 3


def use_as_a_handler(cache: EmbeddingCache) -> None:
    """The calls of a signal handler, or of a `__del__` that the garbage collector calls."""
    cache.put(KEYS[7], torch.full((2, 2), 7.0))
    lease = cache.get(KEYS[7])
    if lease is not None:  # the interrupted call may own all other pages
        assert torch.equal(lease.to_tensor(), torch.full((2, 2), 7.0))
    cache.get_many(KEYS[:3])
    cache.reserve(KEYS[6], 1)
    cache.expect([1])
    with cache.claim(KEYS[5]):
        cache.stats()
    cache.check_integrity()


@pytest.mark.parametrize("call", CALLS)
def test_call_with_calls_of_a_handler_at_any_line_loses_no_page_lease_or_fence(
    call: Callable[[EmbeddingCache], object],
) -> None:
    line, was_called = 1, True
    while was_called:
        model = StreamModel()
        cache = make_busy(model)
        with model.on("d"), suppress(AttributeError):  # the handler evicted the entry that the call reads
            was_called = act_at(partial(call, cache), line, TRACED, partial(use_as_a_handler, cache))
        gc.collect(1)
        assert cache.stats().leased_pages == 0, line
        cache.check_integrity()
        inside = inspect(cache)
        assert (inside.device_pool.num_available, inside.host_pool.num_available) == (5, 4), line
        for number in range(9):
            with model.on("main"):
                assert cache.put(KEYS[number], torch.ones(1, 2))
        assert model.inconsistent_calls == [], line
        if call is not expect:  # which drops the copy of an entry that the handler evicts, unordered or not
            assert model.races == [], line
        line += 1
    assert line > 3


@pytest.mark.parametrize("call", CALLS)
def test_call_during_which_a_handler_closes_the_cache_ends(call: Callable[[EmbeddingCache], object]) -> None:
    line, was_called = 1, True
    errors: list[str] = []
    while was_called:
        model = StreamModel()
        cache = make_busy(model)
        try:
            with model.on("d"):
                was_called = act_at(partial(call, cache), line, TRACED, cache.close)
        except RuntimeError as error:
            errors.append(str(error))
        except AttributeError:  # a look-up of the call missed
            continue
        finally:
            line += 1
        assert model.races == [], line
    assert line > 3
    assert errors
    assert all("closed" in error or "released" in error for error in errors), errors


@pytest.mark.parametrize("method", ["current", "record"])
def test_put_without_a_fence_waits_for_its_copies_and_loses_no_page(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, waits = make_cache(2, 2), []
    cache.put(KEYS[0], make_rows(2, 1.0))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        timeline = inspect(cache).timeline
        patch.setattr(timeline, method, interrupt)
        patch.setattr(timeline, "synchronize", lambda: waits.append(cache.stats().device_bytes))
        with pytest.raises(KeyboardInterrupt):
            cache.put(KEYS[1], make_rows(2, 2.0))
    assert waits == [2 * PAGE_BYTES]  # the pages were still pending
    cache.check_integrity()
    assert (inspect(cache).device_pool.num_free, inspect(cache).host_pool.num_free) == (2, 2)


def test_put_that_can_neither_record_a_fence_nor_wait_loses_no_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_cache(2)

    with monkeypatch.context() as patch:
        for method in ("record", "synchronize"):
            patch.setattr(inspect(cache).timeline, method, fail)
        with pytest.raises(Failure):
            cache.put(KEYS[1], make_rows(2, 2.0))
    cache.check_integrity()
    assert inspect(cache).device_pool.num_free == 2


def lease_the_old_entry(cache: EmbeddingCache) -> object:
    cache.put(KEYS[1], make_rows(1))
    cache.put(KEYS[0], make_rows(1, 1.0))
    return cache.get(KEYS[0])


def leave_a_free_page(cache: EmbeddingCache) -> None:
    cache.put(KEYS[0], make_rows(1, 1.0))


def leave_a_page_of_an_earlier_epoch(cache: EmbeddingCache) -> None:
    cache.put(KEYS[0], make_rows(1))
    cache.advance_epoch()
    cache.put(KEYS[0], make_rows(1, 1.0))


@pytest.mark.parametrize(
    "prepare", [lease_the_old_entry, leave_a_free_page, leave_a_page_of_an_earlier_epoch]
)
def test_failed_put_that_needs_no_page_of_the_old_entry_keeps_it(
    prepare: Callable[[EmbeddingCache], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(2)
    lease = prepare(cache)

    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "write", fail)
        with pytest.raises(Failure):
            cache.put(KEYS[0], make_rows(1, 2.0))
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 1.0))
    del lease


def put_and_call(cache: EmbeddingCache, key: bytes, rows: Tensor, act: Callable[[], object]) -> bool:
    """Call `put`, and call `act` between its copies and its commit."""
    with pytest.MonkeyPatch.context() as patch:
        write = PagePool.write

        def write_and_act(self: PagePool, pages: Any, rows: Tensor) -> None:
            patch.undo()
            write(self, pages, rows)
            act()

        patch.setattr(PagePool, "write", write_and_act)
        return cache.put(key, rows)


@pytest.mark.parametrize("end", [EmbeddingCache.clear, EmbeddingCache.advance_epoch, EmbeddingCache.close])
def test_put_is_rejected_if_the_epoch_ends_during_its_copy(
    end: Callable[[EmbeddingCache], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(1, 1)
    cache.put(KEYS[0], make_rows(1, 0.0))
    assert put_and_call(cache, KEYS[1], make_rows(1, 1.0), lambda: end(cache)) is False
    assert (
        "put of 2 rows rejected: they need 32 bytes; the device tier has 32 bytes, 32 of them free or "
        "evictable; "
    ) in caplog.text
    assert "the rows are of epoch 0, the cache is in epoch 1" in caplog.text
    if end is EmbeddingCache.close:
        return
    cache.check_integrity()
    assert present(cache) == []
    stats = cache.stats()
    assert (stats.insertions, stats.evictions, stats.rejections) == (1, 1, 1)
    assert (stats.device_bytes, stats.host_bytes) == (0, 0)


def test_two_concurrent_puts_of_one_key_keep_the_last_commit() -> None:
    cache = make_cache(4)
    put_and_call(cache, KEYS[0], make_rows(2, 1.0), lambda: cache.put(KEYS[0], make_rows(2, 2.0)))
    assert torch.equal(read(cache, KEYS[0]), make_rows(2, 1.0))
    assert cache.stats().device_bytes == 2 * PAGE_BYTES
    cache.check_integrity()


def test_entry_being_demoted_is_a_miss_and_a_newer_put_supersedes_it() -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))

    def act() -> None:
        assert cache.get(KEYS[0]) is None
        cache.check_integrity()
        assert cache.put(KEYS[0], make_rows(1, 9.0))

    put_and_call(cache, KEYS[2], make_rows(1, 2.0), act)
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 9.0))
    cache.check_integrity()
    assert cache.stats().entries == cache.stats().insertions - cache.stats().evictions


@pytest.mark.parametrize("end", ["commit", "cancel"])
def test_demotion_superseded_by_a_put_does_not_restore_the_old_rows(end: str) -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))
    with cache.reserve(KEYS[2], 2) as reservation:
        cache.check_integrity()
        assert cache.put(KEYS[0], make_rows(1, 9.0))
        assert cache.get(KEYS[0], num_rows=1) is None  # another length: drops the entry
        if end == "commit":
            reservation.commit()
    assert KEYS[0] not in cache
    cache.check_integrity()
    assert cache.stats().entries == cache.stats().insertions - cache.stats().evictions


def test_pending_pages_are_not_available_to_another_put() -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))

    def act() -> None:
        assert cache.stats().device_bytes == 2 * PAGE_BYTES
        # Both pages are pending. The commit frees one of them, because entry 1 needs one page.
        assert cache.put(KEYS[2], make_rows(1)) is False

    assert put_and_call(cache, KEYS[1], make_rows(1, 1.0), act)
    assert present(cache) == [1]
    assert cache.stats().device_bytes == PAGE_BYTES
