"""Puts that fail, are interrupted or overtaken: no page is lost, and no wrong row is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, make_rows, present, read
from caches import make_cache
from failure import Failure, fail
from torch import Tensor

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.pool import PagePool
from vitcache.testing import inspect


@pytest.mark.parametrize("method", ["write", "copy_pages"])
def test_a_failed_copy_leaves_a_consistent_cache_without_the_entry(
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


class Interrupting:
    """A lock that interrupts the given ones of its acquisitions, or of its releases once it has let go."""

    def __init__(self, lock: Any, *, acquire: int = 0, release: int = 0) -> None:
        self.lock = lock
        self.acquire, self.release = acquire, release

    def __enter__(self) -> None:
        self.acquire -= 1
        if self.acquire == 0:
            raise KeyboardInterrupt
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        self.release -= 1
        if self.release == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("when", "inserted"),
    [({"acquire": 1}, 0), ({"release": 1}, 0), ({"acquire": 2}, 0), ({"release": 2}, 1)],
    ids=["before it begins", "once it was begun", "before it is finished", "once it was finished"],
)
def test_an_interrupted_put_loses_no_page(
    when: dict[str, int], inserted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(2, 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(inspect(cache), "lock", Interrupting(inspect(cache).lock, **when))
        with pytest.raises(KeyboardInterrupt):
            cache.put(KEYS[1], make_rows(2, 2.0))
    cache.check_integrity()
    assert cache.stats().insertions == 1 + inserted
    inside = inspect(cache)
    assert (inside.device_pool.num_available, inside.host_pool.num_available) == (2, 2)
    assert cache.put(KEYS[2], make_rows(2, 3.0))
    assert torch.equal(read(cache, KEYS[2]), make_rows(2, 3.0))


@pytest.mark.parametrize("method", ["current", "record"])
def test_a_put_whose_fence_cannot_be_recorded_waits_for_its_copies_and_loses_no_page(
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
    assert waits == [2 * PAGE_BYTES]  # they were still in flight
    cache.check_integrity()
    assert (inspect(cache).device_pool.num_free, inspect(cache).host_pool.num_free) == (2, 2)


def test_a_put_that_can_neither_be_fenced_nor_waited_for_still_loses_no_page(
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


def test_an_interrupted_look_up_leaves_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))
    with monkeypatch.context() as patch:
        patch.setattr(inspect(cache), "lock", Interrupting(inspect(cache).lock, release=1))
        with pytest.raises(KeyboardInterrupt):
            cache.get(KEYS[0])
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_leases_that_are_being_taken_back_survive_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))
    cache.get(KEYS[0]).release()
    with monkeypatch.context() as patch:
        patch.setattr(inspect(cache), "lock", Interrupting(inspect(cache).lock, acquire=1))
        with pytest.raises(KeyboardInterrupt):
            cache.stats()
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def hold_a_lease(cache: EmbeddingCache) -> object:
    cache.put(KEYS[1], make_rows(1))
    cache.put(KEYS[0], make_rows(1, 1.0))
    return cache.get(KEYS[0])


def leave_a_free_page(cache: EmbeddingCache) -> None:
    cache.put(KEYS[0], make_rows(1, 1.0))


def leave_a_page_of_an_earlier_epoch(cache: EmbeddingCache) -> None:
    cache.put(KEYS[0], make_rows(1))
    cache.advance_epoch()
    cache.put(KEYS[0], make_rows(1, 1.0))


@pytest.mark.parametrize("prepare", [hold_a_lease, leave_a_free_page, leave_a_page_of_an_earlier_epoch])
def test_a_failed_replacement_that_needs_other_pages_keeps_the_old_entry(
    prepare: Callable[[EmbeddingCache], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_cache(2)
    held = prepare(cache)

    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "write", fail)
        with pytest.raises(Failure):
            cache.put(KEYS[0], make_rows(1, 2.0))
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 1.0))
    del held


def put_and_meanwhile(cache: EmbeddingCache, key: bytes, rows: Tensor, act: Callable[[], object]) -> bool:
    """Put, and call `act` between its copies and its admission."""
    with pytest.MonkeyPatch.context() as patch:
        write = PagePool.write

        def write_and_act(self: PagePool, pages: Any, rows: Tensor) -> None:
            patch.undo()
            write(self, pages, rows)
            act()

        patch.setattr(PagePool, "write", write_and_act)
        return cache.put(key, rows)


@pytest.mark.parametrize("end", [EmbeddingCache.clear, EmbeddingCache.advance_epoch, EmbeddingCache.close])
def test_a_put_that_is_overtaken_by_an_end_is_not_admitted(
    end: Callable[[EmbeddingCache], None], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(1, 1)
    cache.put(KEYS[0], make_rows(1, 0.0))
    assert put_and_meanwhile(cache, KEYS[1], make_rows(1, 1.0), lambda: end(cache)) is False
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


def test_of_two_puts_of_one_key_the_last_to_be_admitted_wins() -> None:
    cache = make_cache(4)
    put_and_meanwhile(cache, KEYS[0], make_rows(2, 1.0), lambda: cache.put(KEYS[0], make_rows(2, 2.0)))
    assert torch.equal(read(cache, KEYS[0]), make_rows(2, 1.0))
    assert cache.stats().device_bytes == 2 * PAGE_BYTES
    cache.check_integrity()


def test_what_is_being_demoted_is_a_miss_and_a_newer_put_of_it_wins() -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))

    def act() -> None:
        assert cache.get(KEYS[0]) is None
        cache.check_integrity()
        assert cache.put(KEYS[0], make_rows(1, 9.0))

    put_and_meanwhile(cache, KEYS[2], make_rows(1, 2.0), act)
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 9.0))
    cache.check_integrity()
    assert cache.stats().entries == cache.stats().insertions - cache.stats().evictions


@pytest.mark.parametrize("end", ["commit", "cancel"])
def test_what_was_put_again_while_it_moved_does_not_come_back(end: str) -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1, 0.0))
    cache.put(KEYS[1], make_rows(1, 1.0))
    with cache.reserve(KEYS[2], 2) as reservation:
        cache.check_integrity()
        assert cache.put(KEYS[0], make_rows(1, 9.0))
        assert cache.get(KEYS[0], num_rows=1) is None  # of another length: it goes
        if end == "commit":
            reservation.commit()
    assert KEYS[0] not in cache
    cache.check_integrity()
    assert cache.stats().entries == cache.stats().insertions - cache.stats().evictions


def test_pages_in_flight_belong_to_nobody_else() -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))

    def act() -> None:
        assert cache.stats().device_bytes == 2 * PAGE_BYTES
        assert cache.put(KEYS[2], make_rows(1)) is False  # both pages are, though one will be left over

    assert put_and_meanwhile(cache, KEYS[1], make_rows(1, 1.0), act)
    assert present(cache) == [1]
    assert cache.stats().device_bytes == PAGE_BYTES
