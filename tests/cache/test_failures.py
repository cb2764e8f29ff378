"""A `put` that fails, is interrupted or is superseded: no page is lost, and no wrong rows are read."""

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


class Interrupting:
    """A lock that raises KeyboardInterrupt before the n-th acquire or after the n-th release."""

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
    ids=["before it begins", "after it began", "before it finishes", "after it finished"],
)
def test_interrupted_put_loses_no_page(
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


def test_interrupted_get_leaves_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))
    with monkeypatch.context() as patch:
        patch.setattr(inspect(cache), "lock", Interrupting(inspect(cache).lock, release=1))
        with pytest.raises(KeyboardInterrupt):
            cache.get(KEYS[0])
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_interrupted_drain_loses_no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(2)
    cache.put(KEYS[0], make_rows(2))
    cache.get(KEYS[0]).release()
    with monkeypatch.context() as patch:
        patch.setattr(inspect(cache), "lock", Interrupting(inspect(cache).lock, acquire=1))
        with pytest.raises(KeyboardInterrupt):
            cache.stats()
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


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
