"""`compact` moves the device entries to the lowest pages, so that the free pages are one run."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cache_cases import KEYS, WIDTH, make_full, make_rows, present, read, read_entry
from caches import make_cache
from failure import Failure, fail

from vitcache import EmbeddingCache
from vitcache.cache.policies import POLICIES
from vitcache.pages.pool import PagePool
from vitcache.testing import inspect


def free_pages(cache: EmbeddingCache) -> list[int]:
    return sorted(inspect(cache).device_pool.free_pages)


def make_fragmented(policy: str = "lru", host_pages: int = 0, **options: Any) -> EmbeddingCache:
    """Entries 1, 3 and 5 of 1, 3 and 5 pages in the pages 1, 4 to 6 and 11 to 15 of 18."""
    cache = make_cache(18, host_pages, policy=policy, **options)
    for number, pages in enumerate([1, 1, 2, 3, 4, 5]):
        assert cache.put(KEYS[number], make_rows(pages, float(number)))
    for number in (0, 2, 4):
        assert cache.discard(KEYS[number])
    return cache


@pytest.mark.parametrize("policy", POLICIES)
def test_compact_moves_rows_down_and_leaves_one_free_run(policy: str) -> None:
    cache = make_fragmented(policy)
    assert torch.equal(read(cache, KEYS[3]), make_rows(3, 3.0))  # a hit
    before, order = cache.stats(), inspect(cache).eviction_order("device")
    hits = [inspect(cache).entry(KEYS[number]).hits for number in (1, 3, 5)]
    assert cache.reserve(KEYS[7], 18, contiguous=True) is None
    assert cache.compact() is True
    assert free_pages(cache) == list(range(9, 18))
    assert cache.stats() == before
    assert inspect(cache).eviction_order("device") == order
    assert [inspect(cache).entry(KEYS[number]).hits for number in (1, 3, 5)] == hits
    for number, pages in ((1, 1), (3, 3), (5, 5)):
        assert torch.equal(read_entry(cache, KEYS[number]), make_rows(pages, float(number)))
        with cache.get(KEYS[number]) as lease:
            assert len(lease.segments()) == 1
            assert torch.equal(lease.to_tensor(), make_rows(pages, float(number)))
    assert len(cache.reserve(KEYS[7], 18, contiguous=True).segments()) == 1
    cache.check_integrity()


@pytest.mark.parametrize("cache", [make_cache(3), make_full(3)], ids=["empty", "full"])
def test_compact_of_a_compact_tier_moves_nothing(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.Tensor, "copy_", fail)
    before = cache.stats()
    assert cache.compact() is True
    assert cache.stats() == before


def test_rows_that_are_not_adjacent_keep_their_order() -> None:
    cache = make_full(8)
    for number in (1, 6, 3):
        cache.discard(KEYS[number])
    assert cache.put(KEYS[9], make_rows(3, 9.0))
    assert inspect(cache).entry(KEYS[9]).pages == (1, 3, 6)
    cache.discard(KEYS[0])
    cache.discard(KEYS[5])
    assert cache.compact()
    assert inspect(cache).entry(KEYS[9]).pages == (0, 2, 4)
    assert torch.equal(read(cache, KEYS[9]), make_rows(3, 9.0))
    for number in (2, 4, 7):
        assert torch.equal(read(cache, KEYS[number]), make_rows(1, float(number)))
    cache.check_integrity()


@pytest.mark.parametrize("seed", range(20))
def test_random_entries_of_all_widths_and_sizes_keep_their_rows(seed: int) -> None:
    rng = random.Random(seed)
    cache = make_cache(40, 10)
    rows: dict[bytes, torch.Tensor] = {}
    for step in range(60):
        key = bytes([rng.randrange(20)]) * 32
        if rng.random() < 0.4:
            cache.discard(key)
            rows.pop(key, None)
        else:
            width = rng.choice([1, 2, WIDTH])
            new = torch.randn(rng.randint(0, 16), width)
            with cache.reserve(key, len(new), row_width=width, contiguous=True) or cache.reserve(
                key, len(new), row_width=width
            ) as reservation:
                reservation.write(new)
                assert reservation.commit()
            rows[key] = new
            rows = {key: new for key, new in rows.items() if key in cache}
        if step % 10 == 9:
            assert cache.compact()
            used = cache.device_pages - len(free_pages(cache))
            assert free_pages(cache) == list(range(used, 40))
            for key, expected in rows.items():
                tier = "device" if key in inspect(cache).eviction_order("device") else "host"
                assert torch.equal(read_entry(cache, key, tier), expected)
            cache.check_integrity()


def test_host_copies_stay_attached_and_the_host_tier_is_untouched(copies: list[int]) -> None:
    cache = make_fragmented(host_pages=9)
    assert cache.copy_to_host(KEYS[3])
    cache.put(KEYS[8], make_rows(1, 8.0), tier="host")
    pages = {number: inspect(cache).entry(KEYS[number], "host").pages for number in (3, 8)}
    copies.clear()
    assert cache.compact()
    assert pages == {number: inspect(cache).entry(KEYS[number], "host").pages for number in (3, 8)}
    assert cache.demote(KEYS[3])
    assert copies == []
    assert torch.equal(read(cache, KEYS[3]), make_rows(3, 3.0))
    cache.check_integrity()


@pytest.mark.parametrize("use", ["lease", "dropped lease", "reservation", "promotion"])
def test_compact_moves_nothing_while_a_device_page_is_in_use(use: str) -> None:
    cache = make_fragmented(host_pages=9)
    cache.put(KEYS[8], make_rows(1, 8.0), tier="host")
    handles: list[Any] = []
    if use.endswith("lease"):
        handles.append(cache.get(KEYS[1]))
        if use == "dropped lease":
            cache.discard(KEYS[1])
    elif use == "reservation":
        handles.append(cache.reserve(KEYS[9], 1))
    else:
        with cache.get(KEYS[8]) as lease:
            handles.append(cache.promote(lease))
    before = {number: inspect(cache).entry(KEYS[number]).pages for number in (3, 5)}
    stats = cache.stats()
    assert cache.compact() is False
    assert before == {number: inspect(cache).entry(KEYS[number]).pages for number in (3, 5)}
    assert cache.stats() == stats
    handles.clear()  # releases the lease, or cancels the reservation
    assert cache.compact() is True
    cache.check_integrity()


def test_lease_on_a_host_entry_does_not_prevent_the_moves() -> None:
    cache = make_fragmented(host_pages=9)
    assert cache.demote(KEYS[1])
    with cache.get(KEYS[1]) as lease:
        assert cache.compact()
        assert torch.equal(lease.to_tensor(), make_rows(1, 1.0))


def test_pages_of_earlier_epochs_are_freed() -> None:
    cache = make_full(4)
    cache.advance_epoch()
    cache.put(KEYS[7], make_rows(1, 7.0))
    assert cache.compact()
    assert free_pages(cache) == [1, 2, 3]
    assert torch.equal(read(cache, KEYS[7]), make_rows(1, 7.0))


def test_failed_move_demotes_copied_entries_and_drops_the_other_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = make_fragmented(host_pages=9, record_evictions=8)
    cache.take_evicted()
    cache.copy_to_host(KEYS[3])
    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "move_pages", fail)
        with pytest.raises(Failure):
            cache.compact()
    assert present(cache) == [3]
    assert cache.take_evicted() == [KEYS[1], KEYS[5]]
    assert (cache.stats().demotions, cache.stats().device_bytes) == (1, 0)
    assert torch.equal(read(cache, KEYS[3]), make_rows(3, 3.0))
    cache.check_integrity()


def during_moves(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    """Make a call once, before the rows are moved, as another thread could."""
    move_pages = PagePool.move_pages

    def move(*arguments: Any) -> None:
        monkeypatch.undo()
        call()
        move_pages(*arguments)

    monkeypatch.setattr(PagePool, "move_pages", move)


def test_calls_during_the_moves_miss_the_entries_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_fragmented(host_pages=9)

    def call() -> None:
        cache.check_integrity()
        assert KEYS[3] in cache
        assert cache.get(KEYS[3]) is None
        assert cache.get_many([KEYS[5]]) == [None]
        assert cache.demote(KEYS[3]) is False
        assert cache.copy_to_host(KEYS[3]) is False
        assert cache.compact() is False
        cache.expect([30])
        assert cache.put(KEYS[7], make_rows(2, 7.0))
        assert not cache.put(KEYS[8], make_rows(9))  # the pages of moving entries are not evictable
        cache.check_integrity()

    during_moves(monkeypatch, call)
    assert cache.compact()
    for number, pages in ((1, 1), (3, 3), (5, 5), (7, 2)):
        assert torch.equal(read(cache, KEYS[number]), make_rows(pages, float(number)))
    cache.check_integrity()
    assert cache.compact()
    assert free_pages(cache) == list(range(11, 18))


@pytest.mark.parametrize("change", ["discarded", "replaced", "cleared", "epoch", "closed"])
def test_entry_that_leaves_the_cache_during_the_moves_frees_its_pages(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_fragmented()
    changes: dict[str, Any] = {
        "discarded": lambda: cache.discard(KEYS[3]),
        "replaced": lambda: cache.put(KEYS[3], make_rows(1, 9.0)),
        "cleared": cache.clear,
        "epoch": cache.advance_epoch,
        "closed": cache.close,
    }
    during_moves(monkeypatch, changes[change])
    assert cache.compact()
    if change == "closed":
        return
    cache.check_integrity()
    if change == "replaced":
        assert torch.equal(read(cache, KEYS[3]), make_rows(1, 9.0))
    else:
        assert KEYS[3] not in cache
    if change in ("discarded", "replaced"):
        assert torch.equal(read(cache, KEYS[5]), make_rows(5, 5.0))
    assert cache.put(KEYS[6], make_rows(18, 6.0))
    assert torch.equal(read(cache, KEYS[6]), make_rows(18, 6.0))
    cache.check_integrity()


def test_threads_read_the_right_rows_while_one_thread_compacts() -> None:
    cache = make_cache(24, 12)
    wrong: list[int] = []
    ended = threading.Event()

    def use(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(1500):
            number = rng.randrange(len(KEYS))
            if rng.random() < 0.4:
                cache.put(KEYS[number], torch.full((rng.randint(1, 9), WIDTH), float(number)))
            elif rng.random() < 0.2:
                cache.demote(KEYS[number])
            elif lease := cache.get(KEYS[number]):
                with lease:
                    if not (lease.to_tensor() == number).all():
                        wrong.append(number)

    def compact() -> None:
        while not ended.is_set():
            if cache.compact():
                moved.append(True)

    moved: list[bool] = []
    with ThreadPoolExecutor(3) as threads:
        compacting = threads.submit(compact)
        users = [threads.submit(use, seed) for seed in range(2)]
        try:
            for user in users:
                user.result()
        finally:
            ended.set()
        compacting.result()
    assert moved
    assert wrong == []
    cache.check_integrity()
