"""Early copies: `expect` copies victims to the host tier, so that their demotion needs no copy later."""

from __future__ import annotations

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, PAGE_ROWS, make_full, make_rows, present, read
from caches import make_cache
from failure import Failure, fail
from pipeline_scene import Tower, feature, make_ids, make_weight

from vitcache import Chunk, Item, Span, VisionPipeline
from vitcache.pages.pool import PagePool


def test_demotion_of_an_entry_with_an_early_copy_needs_no_copy(copies: list[int]) -> None:
    cache = make_full(3, 3)
    cache.expect([2, 1])
    assert copies == [2]
    stats = cache.stats()
    assert (stats.writebacks, stats.demotions, stats.evictions) == (2, 0, 0)
    assert stats.host_bytes == 2 * PAGE_BYTES
    assert present(cache) == [0, 1, 2]
    for number in (3, 4):
        assert cache.put(KEYS[number], make_rows(1, float(number)))
    assert copies == [2]
    stats = cache.stats()
    assert (stats.writebacks, stats.demotions, stats.evictions) == (2, 2, 0)
    for number in range(5):
        with cache.get(KEYS[number]) as lease:
            assert lease.tier == ("host" if number < 2 else "device")
            assert torch.equal(lease.to_tensor(), make_rows(1, float(number)))
    cache.check_integrity()


def test_expect_makes_one_early_copy_per_entry(copies: list[int]) -> None:
    cache = make_full(3, 3)
    cache.expect([1])
    cache.expect([1])
    assert copies == [1]
    cache.expect([3])  # two pages: one more victim
    assert copies == [1, 1]
    assert cache.stats().writebacks == 2


def test_expect_keeps_the_early_copies_of_its_own_victims(copies: list[int]) -> None:
    cache = make_cache(3, 3)
    for number in range(6):  # both tiers are full
        cache.put(KEYS[number], make_rows(1, float(number)))
    copies.clear()
    for pages in (1, 2, 3, 3):
        cache.expect([pages * PAGE_ROWS])
    assert copies == [1, 1, 1]
    cache.expect([2 * PAGE_ROWS])
    assert cache.put(KEYS[7], make_rows(3, 7.0))
    assert copies == [1, 1, 1]
    assert present(cache) == [3, 4, 5, 7]
    cache.check_integrity()


def test_put_larger_than_expected_copies_only_the_remaining_victims(copies: list[int]) -> None:
    cache = make_cache(3, 3)
    for number in range(6):
        cache.put(KEYS[number], make_rows(1, float(number)))
    copies.clear()
    cache.expect([PAGE_ROWS])
    assert cache.put(KEYS[7], make_rows(2, 7.0))
    assert copies == [1, 1]
    assert present(cache) == [2, 3, 4, 5, 7]


def test_expect_with_a_small_host_tier_copies_the_next_victims(copies: list[int]) -> None:
    cache = make_full(4, 2)
    cache.expect([1] * 4)
    assert copies == [2]
    for number in range(4, 8):
        assert cache.put(KEYS[number], make_rows(1, float(number)))
    assert copies == [2, 1, 1]  # no entry is copied twice
    assert present(cache) == [2, 3, 4, 5, 6, 7]


def test_demotions_without_a_copy_keep_the_order_of_eviction() -> None:
    cache = make_full(3, 2)
    cache.expect([2 * PAGE_ROWS])
    assert cache.put(KEYS[3], make_rows(2))
    assert cache.put(KEYS[4], make_rows(1))  # demotes 2; the host tier evicts 0 first
    assert present(cache) == [1, 2, 3, 4]


def test_expect_copies_at_most_the_pages_of_either_tier(copies: list[int]) -> None:
    cache = make_full(3, 2)
    cache.expect([100])
    assert sum(copies) == cache.stats().writebacks == 2
    assert cache.put(KEYS[5], make_rows(3))
    assert cache.stats().host_bytes == 2 * PAGE_BYTES
    cache.check_integrity()


@pytest.mark.parametrize("case", ["no host tier", "free pages", "no items", "leased", "not worth a copy"])
def test_expect_without_future_demotions_copies_nothing(case: str, copies: list[int]) -> None:
    policy = "s3fifo" if case == "not worth a copy" else "lru"
    cache = make_full(3, 0 if case == "no host tier" else 3, policy=policy)
    leases = [cache.get(KEYS[number]) for number in range(3)] if case == "leased" else []
    if case == "free pages":
        cache.clear()
        cache.put(KEYS[0], make_rows(1))
    before = cache.stats()
    cache.expect([] if case == "no items" else [2, 2])
    assert copies == []
    assert cache.stats() == before
    assert len(leases) in (0, 3)


def test_failed_early_copies_lose_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_full(3, 3)

    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "copy_pages", fail)
        with pytest.raises(Failure):
            cache.expect([4])
    assert present(cache) == [0, 1, 2]
    assert cache.stats().host_bytes == 0
    assert cache.stats().writebacks == 0
    cache.check_integrity()


@pytest.mark.parametrize("change", ["replaced", "evicted", "epoch", "closed"])
def test_early_copy_of_an_entry_that_leaves_the_device_tier_is_discarded(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_full(2, 2)
    copy_pages = PagePool.copy_pages

    def change_during_copy(*arguments: object) -> None:
        monkeypatch.undo()
        if change == "replaced":
            cache.put(KEYS[0], make_rows(1, 9.0))
        elif change == "evicted":
            cache.put(KEYS[5], make_rows(1, 5.0))
        elif change == "epoch":
            cache.advance_epoch()
        else:
            cache.close()
        copy_pages(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PagePool, "copy_pages", change_during_copy)
    cache.expect([1])
    if change == "closed":
        return
    if change == "replaced":
        assert torch.equal(read(cache, KEYS[0]), make_rows(1, 9.0))
    assert cache.stats().writebacks == (change == "evicted")
    cache.check_integrity()


@pytest.mark.parametrize(
    ("num_rows", "error", "message"),
    [([1, -1], ValueError, "num_rows is -1"), ([1.5], TypeError, "num_rows must be an int, got 1.5")],
)
def test_expect_invalid_num_rows_raises_and_copies_nothing(
    num_rows: list[int], error: type[Exception], message: str, copies: list[int]
) -> None:
    cache = make_full(3, 3)
    with pytest.raises(error, match=message):
        cache.expect(num_rows)
    assert copies == []


def test_embed_makes_early_copies_before_its_first_encode(copies: list[int]) -> None:
    made: list[list[int]] = []

    class Watched(Tower):
        def __call__(self, features, items):  # type: ignore[no-untyped-def]
            made.append(list(copies))
            return super().__call__(features, items)

    pipeline = VisionPipeline(Watched(), make_cache(4, host_pages=8), max_rows_per_encode=2)
    for step in range(3):
        items = [Item(feature(10 * step + n, 2), Span(2 * n, 2)) for n in range(4)]
        assert pipeline.embed([Chunk(items, 0, 8)], make_ids(8), make_weight()).errors == []
    # Each step copies four pages in one call before the first of its four encodes, and no page later.
    assert made == [[]] * 4 + [[4]] * 4 + [[4, 4]] * 4
    assert copies == [4, 4]
    pipeline.cache.check_integrity()
