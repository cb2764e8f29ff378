"""The pages of a pool: memory, allocation, fences and copies."""

from __future__ import annotations

import gc
import mmap
import random
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from caches import make_cache
from rings import copy_stream

from vitcache import PinnedRing
from vitcache.device.stand_in import open_runtime
from vitcache.device.streams import CPU_STREAM, Fence
from vitcache.pages.pool import HOST_ALIGNMENT, PagePool, _joint_runs
from vitcache.testing import inspect, stand_in

CPU = torch.device("cpu")


def make_pool(num_pages: int = 8, *, dtype: torch.dtype = torch.float32, tier: str = "device") -> PagePool:
    pool = PagePool(tier, num_pages, 4, 3, dtype, CPU)
    pool.rows.fill_(float("nan"))
    return pool


@pytest.mark.parametrize("tier", ["device", "host"])
def test_pool_memory_is_exactly_its_pages(tier: str) -> None:
    pool = make_pool(5, tier=tier, dtype=torch.bfloat16)
    assert pool.page_bytes == 4 * 3 * 2
    assert pool.rows.shape == (20, 3)
    assert pool.rows.dtype == torch.bfloat16
    assert pool.rows.is_contiguous()
    assert pool.rows.nbytes == 5 * pool.page_bytes
    is_host = tier == "host"
    assert pool.rows.untyped_storage().nbytes() == 5 * pool.page_bytes + is_host * (HOST_ALIGNMENT - 1)


@pytest.mark.parametrize("num_pages", [1, 5, 1000])
def test_host_memory_begins_at_a_page_of_the_system(num_pages: int) -> None:
    pools = [make_pool(num_pages, tier="host") for _ in range(3)]
    assert HOST_ALIGNMENT % mmap.PAGESIZE == 0
    assert all(pool.rows.data_ptr() % HOST_ALIGNMENT == 0 for pool in pools)
    pool = pools[0]
    pool.write(range(num_pages), torch.ones(num_pages * 4, 3))
    assert torch.equal(pool.rows, torch.ones(num_pages * 4, 3))


def test_allocate_returns_each_page_once_in_ascending_order() -> None:
    tier = make_pool(5).make_tier()
    assert tier.allocate(2)[0] == (0, 1)
    assert tier.allocate(0)[0] == ()
    assert tier.allocate(3)[0] == (2, 3, 4)
    assert tier.num_free == 0


def test_freed_pages_are_allocated_in_the_same_order() -> None:
    tier = make_pool(4).make_tier()
    pages, _ = tier.allocate(3)
    tier.free(pages, ())
    assert tier.allocate(3)[0] == pages


def test_freed_pages_keep_their_fences_until_they_are_allocated() -> None:
    tier = make_pool(4).make_tier()
    first, second = Fence(1, "first"), Fence(2, "second")
    pages, fences = tier.allocate(4)
    assert fences == []
    tier.free(pages[:2], (first, second))
    tier.free(pages[2:], (second,))
    assert tier.allocate(2) == (pages[2:], [second])
    assert tier.allocate(2) == (pages[:2], [first, second])
    tier.free(pages, ())
    assert tier.allocate(4)[1] == []


def test_fences_without_an_event_are_complete_and_are_not_kept() -> None:
    tier = make_pool(4).make_tier()
    tier.free(tier.allocate(2)[0], (Fence(CPU_STREAM, None), Fence(1, None)))
    assert tier.allocate(4)[1] == []


def test_num_available_excludes_leased_and_pending_pages() -> None:
    cache = make_cache(8, page_rows=1)
    tier = inspect(cache).device_pool
    cache.put(bytes(32), torch.zeros(3, 4))
    assert (tier.num_free, tier.num_available) == (5, 8)
    with cache.get(bytes(32)), cache.reserve(bytes([1]) * 32, 2):  # type: ignore[union-attr]
        assert (tier.leased_pages, tier.pending_pages, tier.num_available) == (3, 2, 3)
    assert (tier.leased_pages, tier.pending_pages, tier.num_available) == (0, 0, 8)


@pytest.mark.parametrize(("num_rows", "pages"), [(0, 1), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_pages_for_rounds_up_and_is_at_least_one(num_rows: int, pages: int) -> None:
    pool = make_pool()
    assert pool.pages_for(num_rows) == pool.make_tier().pages_for(num_rows) == pages


@pytest.mark.parametrize(
    ("pages", "num_rows", "lengths"),
    [
        ((), 0, []),
        ((3,), 0, []),
        ((3,), 1, [1]),
        ((3,), 4, [4]),
        ((2, 3, 4), 9, [9]),
        ((2, 3, 5), 12, [8, 4]),
        ((5, 4, 3), 10, [4, 4, 2]),
        ((0, 1, 7, 5, 6), 17, [8, 4, 5]),
    ],
)
def test_segments_return_written_rows_in_order_and_join_adjacent_pages(
    pages: tuple[int, ...], num_rows: int, lengths: list[int]
) -> None:
    pool = make_pool()
    rows = torch.arange(num_rows * 3, dtype=torch.float32).view(num_rows, 3)
    pool.write(pages, rows)
    segments = pool.segments(pages, num_rows)
    assert [len(segment) for segment in segments] == lengths
    assert all(segment.untyped_storage().data_ptr() == pool.rows.data_ptr() for segment in segments)
    assert torch.equal(torch.cat([*segments, torch.empty(0, 3)]), rows)
    for row, page_row in enumerate(rows):
        assert torch.equal(pool.rows[pages[row // 4] * 4 + row % 4], page_row)
    assert pool.rows.isfinite().all(dim=1).sum() == num_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_write_rounds_rows_like_a_cast(dtype: torch.dtype) -> None:
    pool = make_pool(dtype=dtype)
    rows = torch.randn(6, 3)
    pool.write((1, 2), rows)
    assert torch.equal(pool.segments((1, 2), 6)[0], rows.to(dtype))


def test_write_strided_rows_copies_their_values() -> None:
    pool = make_pool()
    rows = torch.randn(3, 12).t()[::2]
    assert not rows.is_contiguous()
    pool.write((1, 4), rows)
    assert torch.equal(torch.cat(pool.segments((1, 4), 6)), rows)


def test_copy_pages_copies_each_page_to_its_counterpart() -> None:
    source, pool = make_pool(), make_pool(tier="host")
    source.rows.copy_(torch.randn(32, 3))
    pool.copy_pages((6, 0, 3), source, (1, 2, 5))
    for page, source_page in ((6, 1), (0, 2), (3, 5)):
        assert torch.equal(
            pool.rows[page * 4 : page * 4 + 4], source.rows[source_page * 4 : source_page * 4 + 4]
        )
    assert pool.rows.isfinite().all(dim=1).sum() == 12


@pytest.mark.parametrize(
    ("pages", "source_pages", "copies"),
    [
        ((), (), 0),
        ((4,), (0,), 1),
        ((2, 3, 4), (5, 6, 7), 1),
        ((2, 3, 4), (5, 6, 0), 2),
        ((0, 2, 3, 1), (1, 2, 3, 4), 3),
    ],
)
def test_queue_copies_gives_the_cpu_result_with_one_copy_per_joint_run(
    pages: tuple[int, ...], source_pages: tuple[int, ...], copies: int
) -> None:
    source, expected, pool = make_pool(), make_pool(tier="host"), make_pool(tier="host")
    source.rows.copy_(torch.randn(32, 3))
    expected.copy_pages(pages, source, source_pages)
    with PinnedRing(1 << 16, backend="host") as ring:
        stand_in.reset()
        with stand_in.paused():
            stream = copy_stream(ring)
            pool.queue_copies(list(_joint_runs(pages, source_pages)), source, open_runtime(), stream)
            assert pool.rows.isnan().all()  # the streams are paused: no copy has run
        ring.copy_to(torch.empty(1), torch.zeros(1)).synchronize()  # on the same stream
        assert stand_in.count().copies == copies + 1
    assert torch.equal(pool.rows.nan_to_num(), expected.rows.nan_to_num())


@pytest.mark.parametrize("to_host", [True, False])
@pytest.mark.parametrize("on_default_stream", [True, False])
def test_copies_between_tiers_are_one_batch_except_on_a_default_stream(
    to_host: bool, on_default_stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_pool, host_pool = make_pool(), make_pool(tier="host")
    source, pool = (device_pool, host_pool) if to_host else (host_pool, device_pool)
    source.rows.copy_(torch.randn(32, 3))
    batches: list[int] = []
    with PinnedRing(1 << 16, backend="host") as ring:
        handle = 0 if on_default_stream else copy_stream(ring).handle
        current = SimpleNamespace(cuda_stream=handle, device=SimpleNamespace(index=0))
        queue_copies = PagePool.queue_copies

        def queue(pool: PagePool, runs: Any, *arguments: Any) -> None:
            batches.append(len(runs))
            queue_copies(pool, runs, *arguments)

        with monkeypatch.context() as patch:  # the pools of a GPU
            patch.setattr(host_pool, "_runtime", open_runtime())
            patch.setattr(torch.cuda, "current_stream", lambda _: current)
            patch.setattr(PagePool, "queue_copies", queue)
            pool.copy_pages((2, 3, 0), source, (5, 6, 7))
        ring.copy_to(torch.empty(1), torch.zeros(1)).synchronize()  # on the same stream
    assert batches == ([] if on_default_stream else [2])
    for page, source_page in ((2, 5), (3, 6), (0, 7)):
        assert torch.equal(
            pool.rows[page * 4 : page * 4 + 4], source.rows[source_page * 4 : source_page * 4 + 4]
        )
    assert pool.rows.isfinite().all(dim=1).sum() == 12


@pytest.mark.parametrize(
    ("moves", "num_copies"),
    [
        ([], 0),
        ([(0, 4, 4)], 1),
        ([(0, 1, 7)], 7),  # each part is as long as the shift
        ([(0, 2, 5)], 3),
        ([(1, 2, 1), (2, 5, 3)], 2),
    ],
)
def test_move_pages_gives_the_result_of_a_copy_through_other_memory(
    moves: list[tuple[int, int, int]], num_copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool()
    pool.rows.copy_(torch.randn(32, 3))
    expected = pool.rows.clone()
    for page, source_page, count in moves:
        expected[page * 4 : (page + count) * 4] = expected[
            source_page * 4 : (source_page + count) * 4
        ].clone()
    copies: list[int] = []
    copy_ = torch.Tensor.copy_

    def count_copy(self: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        assert self.data_ptr() + self.nbytes <= source.data_ptr()  # no copy overlaps itself
        copies.append(len(source))
        return copy_(self, source)

    monkeypatch.setattr(torch.Tensor, "copy_", count_copy)
    pool.move_pages(moves)
    assert torch.equal(pool.rows, expected)
    assert (len(copies), sum(copies)) == (num_copies, 4 * sum(count for _, _, count in moves))


def test_random_allocate_and_free_never_returns_a_page_twice() -> None:
    rng = random.Random(0)
    tier = make_pool(16).make_tier()
    allocated: list[tuple[int, ...]] = []
    for _ in range(500):
        if rng.random() < 0.5:
            allocated.append(tier.allocate(rng.randint(0, tier.num_free))[0])
        elif allocated:
            tier.free(allocated.pop(rng.randrange(len(allocated))), ())
        pages = [page for pages in allocated for page in pages]
        assert len(pages) == len(set(pages)) == 16 - tier.num_free
    pages += tier.allocate(tier.num_free)[0]
    assert sorted(pages) == list(range(16))


def test_tier_keeps_the_memory_of_its_pool_alive() -> None:
    pool = make_pool()
    memory, tier = weakref.ref(pool), pool.make_tier()
    del pool
    gc.collect()
    assert memory() is not None
    del tier
    assert memory() is None


def test_pool_made_in_inference_mode_is_writable_outside_of_it() -> None:
    with torch.inference_mode():
        pool = make_pool()
    pool.write((0,), torch.zeros(1, 3))
    with torch.inference_mode():
        pool.write((1,), torch.ones(1, 3))
    assert pool.rows[0, 0] == 0
    assert pool.rows[4, 0] == 1
