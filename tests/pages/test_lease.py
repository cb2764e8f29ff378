"""Leases: reading rows in place, releasing in any thread, and errors after the release."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import make_cache
from stream_model import StreamModel

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.testing import inspect

KEY = bytes(32)
ROWS = torch.arange(15, dtype=torch.float32).view(5, 3)


@pytest.fixture
def cache() -> EmbeddingCache:
    cache = make_cache(4, width=3)
    cache.put(KEY, ROWS)
    return cache


def get(cache: EmbeddingCache) -> Lease:
    lease = cache.get(KEY)
    assert lease is not None
    return lease


def test_lease_describes_its_rows_before_and_after_release(cache: EmbeddingCache) -> None:
    with get(cache) as lease:
        assert (lease.num_rows, lease.row_width, lease.dtype, lease.page_rows) == (5, 3, torch.float32, 2)
        assert lease.pool.shape == (8, 3)
        assert len(lease.pages) == 3
        assert not lease.released
    assert lease.released
    assert (lease.num_rows, lease.row_width, lease.dtype, lease.page_rows) == (5, 3, torch.float32, 2)


def test_lease_pages_and_segments_give_the_rows_in_order(cache: EmbeddingCache) -> None:
    with get(cache) as lease:
        for row in range(5):
            assert torch.equal(lease.pool[lease.pages[row // 2] * 2 + row % 2], ROWS[row])
        assert torch.equal(torch.cat(lease.segments()), ROWS)


def test_lease_segments_are_views_and_to_tensor_is_a_copy(cache: EmbeddingCache) -> None:
    with get(cache) as lease:
        copy = lease.to_tensor()
        assert torch.equal(copy, ROWS)
        assert {segment.untyped_storage().data_ptr() for segment in lease.segments()} == {
            lease.pool.data_ptr()
        }
        copy.fill_(float("nan"))
        assert torch.equal(lease.to_tensor(), ROWS)


def test_lease_of_an_empty_entry_has_one_page_and_no_segments(cache: EmbeddingCache) -> None:
    assert cache.put(KEY, torch.empty(0, 3))
    with get(cache) as lease:
        lease.use()
        assert len(lease.pages) == 1
        assert lease.segments() == []
        assert lease.to_tensor().shape == (0, 3)


@pytest.mark.parametrize(
    "use",
    [
        Lease.use,
        Lease.to_tensor,
        Lease.segments,
        Lease.__enter__,
        lambda lease: lease.pool,
        lambda lease: lease.pages,
    ],
    ids=["use", "to_tensor", "segments", "with", "pool", "pages"],
)
def test_released_lease_raises_when_used(cache: EmbeddingCache, use: Callable[[Lease], object]) -> None:
    lease = get(cache)
    lease.release()
    with pytest.raises(RuntimeError, match="this lease of 5 rows was released"):
        use(lease)


def test_second_release_does_nothing(cache: EmbeddingCache) -> None:
    first, second = get(cache), get(cache)
    first.release()
    first.release()
    assert cache.stats().leased_pages == 3
    assert torch.equal(second.to_tensor(), ROWS)
    second.release()
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_lease_is_released_when_its_with_block_raises(cache: EmbeddingCache) -> None:
    with pytest.raises(KeyError), get(cache):
        raise KeyError
    assert cache.stats().leased_pages == 0


def test_garbage_collected_lease_is_released(cache: EmbeddingCache) -> None:
    lease = get(cache)
    assert cache.stats().leased_pages == 3
    del lease
    gc.collect()
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_lease_in_a_cycle_may_be_collected_under_the_lock(cache: EmbeddingCache) -> None:
    cycle: list[object] = [get(cache)]
    cycle.append(cycle)
    collected = threading.Event()

    def collect_under_the_lock() -> None:
        with inspect(cache).drain_lock:
            gc.collect()
        collected.set()

    del cycle
    thread = threading.Thread(target=collect_under_the_lock, daemon=True)
    thread.start()
    assert collected.wait(timeout=60)
    assert cache.stats().leased_pages == 0
    cache.check_integrity()


def test_lease_released_by_many_threads_is_unpinned_once(cache: EmbeddingCache) -> None:
    first = get(cache)
    for _ in range(50):
        lease, barrier = get(cache), threading.Barrier(4)

        def release(lease: Lease = lease, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            lease.release()

        threads = [threading.Thread(target=release) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cache.check_integrity()
        assert cache.stats().leased_pages == 3
    first.release()
    assert cache.stats().leased_pages == 0


def test_lease_is_made_only_by_a_look_up() -> None:
    for arguments in ((), (1,)):
        with pytest.raises(TypeError, match="cannot create"):
            Lease(*arguments)
        with pytest.raises(TypeError):
            Lease.__new__(Lease, *arguments)


def test_lease_has_no_dictionary(cache: EmbeddingCache) -> None:
    with pytest.raises(AttributeError):
        get(cache).note = 1  # type: ignore[attr-defined]


def test_look_ups_that_release_their_lease_start_no_garbage_collection(cache: EmbeddingCache) -> None:
    collections: list[str] = []

    def count(phase: str, info: dict[str, Any]) -> None:
        collections.append(phase)

    gc.collect()
    gc.callbacks.append(count)
    try:
        for _ in range(10_000):
            lease = cache.get(KEY)
            assert lease is not None
            lease.use()
            lease.release()
    finally:
        gc.callbacks.remove(count)
    assert collections == []
    assert cache.stats().leased_pages == 0


def test_lease_of_a_closed_cache_is_readable_and_its_release_frees_memory(cache: EmbeddingCache) -> None:
    first, second = get(cache), get(cache)
    pool = weakref.ref(inspect(cache).lease_entry(first).memory)
    cache.close()
    assert torch.equal(first.to_tensor(), ROWS)
    first.release()
    assert torch.equal(second.to_tensor(), ROWS)
    second.release()
    gc.collect()
    assert pool() is None
    assert first.num_rows == 5


@pytest.mark.parametrize("end", ["close", "delete"])
def test_memory_of_a_closed_cache_is_freed_with_the_last_lease_of_a_stream(end: str) -> None:
    model = StreamModel()
    cache = model.make_cache(2, 2)
    cache.put(KEY, torch.ones(2, 2))
    cache.put(bytes([1]) * 32, torch.ones(2, 2))
    host, device = cache.get(KEY), cache.get(bytes([1]) * 32)
    assert host is not None
    assert device is not None
    memories = [weakref.ref(inspect(cache).lease_entry(lease).memory) for lease in (host, device)]
    if end == "close":
        cache.close()
    model.cache = None
    del cache
    gc.collect()
    for lease, memory in ((host, memories[0]), (device, memories[1])):
        assert lease.to_tensor().sum() == 4
        assert memory() is not None
        lease.release()
        gc.collect()
        assert memory() is None


def test_lease_of_a_garbage_collected_cache_is_readable() -> None:
    cache = make_cache(4, width=3)
    cache.put(KEY, ROWS)
    lease = get(cache)
    del cache
    gc.collect()
    assert torch.equal(lease.to_tensor(), ROWS)
    lease.release()
