"""`reserve` and `promote` with contiguous=True: one run of free pages, and no entry is evicted."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from cache_cases import KEYS, WIDTH, make_full, make_rows, present, read
from caches import make_cache

from vitcache import EmbeddingCache
from vitcache.testing import inspect


def make_gaps(device_pages: int, dropped: list[int], **options: Any) -> EmbeddingCache:
    """A cache with entries of one page, of which some were dropped: their pages are free."""
    cache = make_full(device_pages, **options)
    for number in dropped:
        assert cache.discard(KEYS[number])
    return cache


def test_rows_in_one_run_are_one_view_of_the_reservation_and_of_the_lease() -> None:
    cache = make_gaps(8, [1, 4, 5, 6])
    reservation = cache.reserve(KEYS[9], 6, contiguous=True)
    assert inspect(cache).pages_of(reservation) == [4, 5, 6]
    [view] = reservation.segments()
    view.copy_(make_rows(3))
    assert reservation.commit()
    with cache.get(KEYS[9]) as lease:
        [view] = lease.segments()
        assert torch.equal(view, make_rows(3))
        assert view.data_ptr() == lease.pool[lease.pages[0] * 2].data_ptr()
    cache.check_integrity()


def test_the_shortest_run_that_is_long_enough_is_used() -> None:
    cache = make_gaps(9, [0, 1, 2, 4, 5, 7])
    reservation = cache.reserve(KEYS[9], 4, contiguous=True)
    assert inspect(cache).pages_of(reservation) == [4, 5]


def test_narrow_rows_and_no_rows_are_reserved_in_one_run() -> None:
    cache = make_gaps(5, [1, 3, 4])
    narrow = cache.reserve(KEYS[8], 5, row_width=2, contiguous=True)  # four rows of a page
    assert inspect(cache).pages_of(narrow) == [3, 4]
    assert [tuple(view.shape) for view in narrow.segments()] == [(5, 2)]
    empty = cache.reserve(KEYS[9], 0, contiguous=True)
    assert inspect(cache).pages_of(empty) == [1]
    assert empty.segments() == []
    assert empty.commit()


@pytest.mark.parametrize("dropped", [[], [0, 2], [1]])
def test_without_a_run_nothing_changes_and_nothing_is_counted_or_logged(
    dropped: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_gaps(4, dropped)
    before = cache.stats()
    with caplog.at_level(logging.DEBUG):
        assert cache.reserve(KEYS[9], 4, contiguous=True) is None
        assert cache.reserve(KEYS[3], 4, contiguous=True) is None  # a known key
    assert (cache.stats(), caplog.records) == (before, [])
    assert present(cache) == [number for number in range(4) if number not in dropped]
    cache.check_integrity()


def test_rows_that_the_tier_cannot_contain_are_rejected(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_full(2)
    before = cache.stats()
    for _ in range(2):
        assert cache.reserve(KEYS[9], 5, contiguous=True) is None
    assert cache.reserve(KEYS[9], 2**70, contiguous=True) is None
    assert cache.stats() == replace(before, rejections=3)
    [record] = caplog.records
    assert "they need 96 bytes; the device tier has 64 bytes" in record.message
    assert inspect(cache).logged_rejections == ["size device"]


def test_rows_of_an_earlier_epoch_are_rejected(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(2)
    cache.advance_epoch()
    assert cache.reserve(KEYS[9], 1, epoch=0, contiguous=True) is None
    assert cache.stats().rejections == 1
    assert "the rows are of epoch 0, the cache is in epoch 1" in caplog.text


def test_pages_of_earlier_epochs_are_used_at_once() -> None:
    cache = make_full(4)
    cache.advance_epoch()
    assert cache.stats().device_bytes == cache.stats().device_capacity_bytes
    assert len(cache.reserve(KEYS[9], 8, contiguous=True).segments()) == 1
    assert inspect(cache).num_stale_indexes == 0


def test_replaced_entry_is_readable_until_the_commit() -> None:
    cache = make_gaps(3, [2])
    with cache.reserve(KEYS[0], 2, contiguous=True) as reservation:
        reservation.write(make_rows(1, 7.0))
        assert torch.equal(read(cache, KEYS[0]), make_rows(1))
        assert reservation.commit()
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 7.0))
    assert inspect(cache).device_pool.num_free == 1


def test_pages_of_a_cancelled_reservation_are_free_again() -> None:
    cache = make_cache(4)
    for end in ("cancel", "forget"):
        reservation = cache.reserve(KEYS[0], 8, contiguous=True)
        if end == "cancel":
            reservation.cancel()
        del reservation
        assert cache.stats().device_bytes == 0
    assert len(cache.reserve(KEYS[0], 8, contiguous=True).segments()) == 1


def test_promotion_to_one_run_evicts_nothing() -> None:
    cache = make_full(3, 2)
    cache.put(KEYS[9], make_rows(2, 9.0), tier="host")
    cache.discard(KEYS[0])
    cache.discard(KEYS[2])
    before = cache.stats()
    with cache.get(KEYS[9]) as lease:
        assert cache.promote(lease, contiguous=True) is None
        assert cache.stats() == replace(
            before, hits=1, leased_pages=2, host=cache.stats().host, device=before.device
        )
        cache.discard(KEYS[1])
        with cache.promote(lease, contiguous=True) as reservation:
            assert len(reservation.segments()) == 1
            reservation.write(lease)
            assert reservation.commit()
        assert cache.promote(lease, contiguous=True) is None  # it is in the device tier
    with cache.get(KEYS[9]) as lease:
        assert (lease.tier, len(lease.segments())) == ("device", 1)
        assert torch.equal(lease.to_tensor(), make_rows(2, 9.0))
    assert cache.stats().evictions == before.evictions + 1
    cache.check_integrity()


@pytest.mark.parametrize("contiguous", [1, 0, None, "yes"])
def test_contiguous_that_is_not_a_bool_raises_and_changes_nothing(contiguous: Any) -> None:
    cache = make_cache(2, 2)
    cache.put(KEYS[0], make_rows(1), tier="host")
    with cache.get(KEYS[0]) as lease:
        before = cache.stats()
        match = f"contiguous must be a bool, got {contiguous!r} of type {type(contiguous).__name__}"
        for call in (
            lambda: cache.reserve(KEYS[1], 1, contiguous=contiguous),
            lambda: cache.promote(lease, contiguous=contiguous),
        ):
            with pytest.raises(TypeError, match=match):
                call()
        assert cache.stats() == before


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"num_rows": -1}, ValueError, "num_rows is -1"),
        ({"num_rows": True}, TypeError, "num_rows must be an int, got True"),
        ({"epoch": -1}, ValueError, "epoch is -1"),
        ({"encode_ms": -1.0}, ValueError, "encode_ms is -1.0"),
        ({"row_width": 3}, ValueError, f"row_width is 3, it must divide .* {WIDTH}"),
        ({"key": b"short"}, ValueError, "key has 5 bytes"),
    ],
)
def test_invalid_argument_of_a_contiguous_reservation_raises(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    cache = make_cache(2)
    arguments = {"key": KEYS[0], "num_rows": 1} | options
    with pytest.raises(error, match=match):
        cache.reserve(**arguments, contiguous=True)
    assert (cache.stats().device_bytes, cache.stats().rejections) == (0, 0)
