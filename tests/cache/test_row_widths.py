"""Rows of several widths in one cache: packed in pages, leased, placed, demoted, promoted and looked up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import KEYS, PAGE_BYTES, WIDTH, make_rows, present, read
from caches import make_cache

from vitcache import EmbeddingCache, Span, scatter_embeddings
from vitcache.testing import inspect


def make_narrow(num_rows: int, width: int, value: float = 0.0) -> torch.Tensor:
    return torch.arange(num_rows * width).view(num_rows, width) / 64 + value


@pytest.mark.parametrize("width", [1, 2, WIDTH])
@pytest.mark.parametrize("num_rows", [0, 1, 4, 5, 13])
def test_rows_of_a_divisor_are_packed_and_read_back(num_rows: int, width: int) -> None:
    cache, rows = make_cache(8), make_narrow(num_rows, width)
    assert cache.put(KEYS[0], rows)
    pages = max(1, -(-num_rows * width // (2 * WIDTH)))  # a page has two full rows
    assert cache.pages_for(num_rows, width) == pages
    assert cache.stats().device_bytes == pages * PAGE_BYTES
    with cache.get(KEYS[0]) as lease:
        assert (lease.num_rows, lease.row_width, lease.page_rows) == (num_rows, width, 2 * WIDTH // width)
        assert lease.pool.shape == (8 * 2 * WIDTH // width, width)
        assert torch.equal(lease.to_tensor(), rows)
        for row in range(num_rows):
            page = lease.pages[row // lease.page_rows]
            assert torch.equal(lease.pool[page * lease.page_rows + row % lease.page_rows], rows[row])
        assert sum(map(len, lease.segments())) == num_rows
    assert (lease.row_width, lease.page_rows) == (width, 2 * WIDTH // width)  # also after the release
    assert cache.stats().device.hit_bytes == num_rows * width * 4
    cache.check_integrity()


@pytest.mark.parametrize("width", [1, 2, WIDTH])
def test_placement_of_narrow_leases_writes_the_bits_of_their_rows(width: int) -> None:
    cache = make_cache(16)
    rows = [make_narrow(number, width, float(number)) for number in (9, 1, 5)]
    for key, each in zip(KEYS, rows, strict=False):
        assert cache.put(key, each)
    leases = cache.get_many(KEYS[:3], row_width=width)
    out = torch.full((12, width), float("nan"))
    scatter_embeddings(out, leases, [Span(0, 6, 3), 7, Span(9, 2, 1)])
    expected = torch.full((12, width), float("nan"))
    expected[:6], expected[7], expected[9:11] = rows[0][3:], rows[1][0], rows[2][1:3]
    assert torch.equal(out.nan_to_num(-1), expected.nan_to_num(-1))


def test_placement_of_a_lease_of_another_width_names_both_widths() -> None:
    cache, out = make_cache(4), torch.full((4, WIDTH), float("nan"))
    cache.put(KEYS[0], make_narrow(3, 2))
    with cache.get(KEYS[0]) as lease, pytest.raises(ValueError, match=r"item 0 .* width 2.* 4"):
        scatter_embeddings(out, [lease], [0])
    assert out.isnan().all()


def test_reservation_of_narrow_rows_is_written_by_a_placement() -> None:
    cache, rows = make_cache(4), make_narrow(5, 2)
    with cache.reserve(KEYS[0], 5, row_width=2) as reservation:
        assert (reservation.num_rows, reservation.row_width) == (5, 2)
        out = torch.zeros(5, 2)
        scatter_embeddings(out, [rows], [0], store=[reservation])
        assert torch.equal(reservation.to_tensor(), rows)
        assert [segment.shape[1] for segment in reservation.segments()] == [2]
        with pytest.raises(ValueError, match=r"rows has shape \(5, 4\), it must be \(num_rows, 2\)"):
            reservation.write(torch.zeros(5, WIDTH))
        assert reservation.commit()
    assert torch.equal(out, rows)
    assert torch.equal(read(cache, KEYS[0]), rows)


@pytest.mark.parametrize("checksum", [False, True])
def test_demotion_promotion_and_early_copies_keep_the_width(checksum: bool) -> None:
    cache, rows = make_cache(2, 4, checksum=checksum), make_narrow(7, 2)  # two pages
    cache.put(KEYS[0], rows)
    cache.expect([8], row_width=2)
    assert cache.stats().writebacks == 1
    cache.put(KEYS[1], make_rows(2))
    with cache.get(KEYS[0], num_rows=7, row_width=2) as lease, cache.promote(lease) as reservation:
        assert (lease.tier, lease.row_width, reservation.row_width) == ("host", 2, 2)
        assert torch.equal(lease.to_tensor(), rows)
        reservation.write(lease.to_tensor())
        assert reservation.commit()
    with cache.get(KEYS[0]) as lease:
        assert (lease.tier, lease.row_width) == ("device", 2)
        assert torch.equal(lease.to_tensor(), rows)
    cache.put(KEYS[2], make_rows(2))
    with cache.get(KEYS[0]) as lease:
        assert (lease.tier, lease.row_width) == ("host", 2)
        assert torch.equal(lease.to_tensor(), rows)
    assert cache.stats().corruptions == 0
    cache.check_integrity()


def test_changed_narrow_rows_do_not_match_their_checksum() -> None:
    cache = make_cache(1, 1, checksum=True)
    cache.put(KEYS[0], make_narrow(4, 2))
    cache.put(KEYS[1], make_rows(1))
    with cache.get(KEYS[0]) as lease:
        lease.pool[lease.pages[0] * lease.page_rows + 3, 1] += 1
    assert cache.get(KEYS[0]) is None
    assert cache.stats().corruptions == 1


@pytest.mark.parametrize(("before", "after"), [(WIDTH, 2), (2, WIDTH), (1, 2)])
def test_entry_is_replaced_by_one_of_another_width(before: int, after: int) -> None:
    cache = make_cache(8)
    old, new = make_narrow(5, before), make_narrow(5, after, 9.0)
    cache.put(KEYS[0], old)
    lease = cache.get(KEYS[0])
    assert cache.put(KEYS[0], new)
    assert torch.equal(lease.to_tensor(), old)
    assert torch.equal(read(cache, KEYS[0]), new)
    lease.release()
    assert cache.stats().device_bytes == cache.pages_for(5, after) * PAGE_BYTES
    cache.check_integrity()


def test_look_up_of_another_width_drops_the_entry_and_is_a_miss() -> None:
    cache = make_cache(4)
    for key in KEYS[:4]:
        cache.put(key, make_narrow(4, 2))
    assert cache.get(KEYS[0], row_width=2) is not None
    assert cache.get(KEYS[0], num_rows=4, row_width=WIDTH) is None
    found = cache.get_many(KEYS[1:4], num_rows=4, row_width=[2, None, 1])
    assert [lease is None for lease in found] == [False, False, True]
    assert present(cache) == [1, 2]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.evictions) == (3, 2, 2)
    assert cache.get_many([KEYS[1]], row_width=4) == [None]


def test_look_up_of_a_plan_expects_a_width_per_item() -> None:
    cache = make_cache(4)
    for key in KEYS[:3]:
        cache.put(key, make_narrow(4, 2))
    ledger = inspect(cache).ledger
    leases = ledger.pin_all([KEYS[0], None, KEYS[1], KEYS[2]], [4, -1, -1, 4], [2, 2, -1, 4])
    assert leases.misses() == [1, 3]
    assert present(cache) == [0, 1]
    with pytest.raises(IndexError):
        ledger.pin_all([KEYS[0], KEYS[1]], [4, 4], [2])
    leases.release()
    cache.check_integrity()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda cache: cache.put(KEYS[1], torch.zeros(2, 3)), ValueError, r"\(2, 3\), it must be .*, 4\)"),
        (lambda cache: cache.put(KEYS[1], torch.zeros(2, 8)), ValueError, r"\(2, 8\), it must be .*, 4\)"),
        (lambda cache: cache.put(KEYS[1], torch.zeros(2, 0)), ValueError, r"\(2, 0\), it must be .*, 4\)"),
        (lambda cache: cache.reserve(KEYS[1], 2, row_width=3), ValueError, "row_width is 3, .* is 4"),
        (lambda cache: cache.reserve(KEYS[1], 2, row_width=8), ValueError, "row_width is 8, .* is 4"),
        (lambda cache: cache.reserve(KEYS[1], 2, row_width=0), ValueError, "row_width is 0, .* at least 1"),
        (lambda cache: cache.reserve(KEYS[1], 2, row_width=True), TypeError, "row_width must be an int"),
        (lambda cache: cache.reserve(KEYS[1], 2, row_width=2.0), TypeError, "row_width must be an int"),
        (lambda cache: cache.claim(KEYS[1]).reserve(2, row_width=3), ValueError, "row_width is 3, .* is 4"),
        (lambda cache: cache.claim(KEYS[1]).put(torch.zeros(2, 3)), ValueError, r"\(2, 3\), it must be"),
        (lambda cache: cache.get(KEYS[0], row_width=3), ValueError, "row_width is 3, .* is 4"),
        (lambda cache: cache.get(KEYS[0], row_width=-1), ValueError, "row_width is -1, .* at least 1"),
        (lambda cache: cache.get(KEYS[0], row_width=True), TypeError, "row_width must be an int"),
        (lambda cache: cache.get("key", row_width=2), TypeError, "key must be bytes"),
        (lambda cache: cache.get_many(KEYS[:2], None, 3), ValueError, "row_width is 3, .* is 4"),
        (lambda cache: cache.get_many(KEYS[:2], None, [2, True]), TypeError, "row_width must be an int"),
        (lambda cache: cache.get_many(KEYS[:2], None, [2]), ValueError, "expected 2, got 1"),
        (lambda cache: cache.get_many(KEYS[:2], None, "ab"), TypeError, "row_width must be an int"),
        (lambda cache: cache.has_room(1, row_width=3), ValueError, "row_width is 3, .* is 4"),
        (lambda cache: cache.expect([1], row_width=3), ValueError, "row_width is 3, .* is 4"),
        (lambda cache: cache.expect([1], row_width=[2, 2]), ValueError, "expected 1, got 2"),
        (lambda cache: cache.pages_for(1, 3), ValueError, "width is 3, .* row_width, which is 4"),
        (lambda cache: cache.pages_for(1, width=True), TypeError, "width must be an int"),
        (lambda cache: cache.pages_for(-1), ValueError, "num_rows is -1, it must be at least 0"),
        (lambda cache: cache.pages_for(True), TypeError, "num_rows must be an int"),
        (lambda cache: cache.pages_for(1.5), TypeError, "num_rows must be an int"),
    ],
)
def test_invalid_width_raises_and_changes_nothing(call: Any, error: type[Exception], match: str) -> None:
    cache = make_cache(4, 4)
    cache.put(KEYS[0], make_narrow(4, 2))
    before = cache.stats()
    with pytest.raises(error, match=match):
        call(cache)
    assert cache.stats() == before
    assert torch.equal(read(cache, KEYS[0]), make_narrow(4, 2))


def test_capacities_in_pages() -> None:
    cache = make_cache(4, 3)
    assert (cache.device_pages, cache.host_pages) == (4, 3)
    assert make_cache(4).host_pages == 0
    assert [cache.pages_for(rows) for rows in (0, 1, 2, 3)] == [1, 1, 1, 2]
    assert [cache.pages_for(rows, 1) for rows in (0, 8, 9)] == [1, 1, 2]
    assert cache.pages_for(2**70) == 2**70 // 2
    assert [cache.has_room(rows, row_width=2) for rows in (16, 17)] == [True, False]
    cache.close()
    assert (cache.device_pages, cache.host_pages) == (4, 3)
    for call in (lambda: cache.pages_for(1), lambda: cache.pages_for(-1), lambda: cache.has_room(1)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_claim_inserts_rows_of_its_width() -> None:
    cache = make_cache(4, 4)
    with cache.claim(KEYS[0]) as claim:
        assert claim.put(make_narrow(4, 2), tier="both")
        with claim.reserve(4, row_width=1) as reservation:
            assert reservation.row_width == 1
    assert cache.get(KEYS[0]).row_width == 2


def test_cache_of_one_element_has_one_width() -> None:
    cache = EmbeddingCache(1, dtype=torch.float32, device="cpu", device_bytes=64)
    assert cache.put(KEYS[0], torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"\(3, 2\), it must be \(num_rows, 1\)"):
        cache.put(KEYS[0], torch.ones(3, 2))
