"""`Reservation.write` of a lease copies the leased pages, and refuses leases that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import make_cache
from placement_cases import make_rows, same_bits

from vitcache import EmbeddingCache, Lease

KEY, OTHER = bytes(32), bytes([1]) * 32
WIDTH = 12
CACHE: dict[str, Any] = {"width": WIDTH, "dtype": torch.bfloat16, "page_rows": 4}


def read(cache: EmbeddingCache, key: bytes) -> torch.Tensor:
    with cache.get(key) as lease:
        return lease.to_tensor()


@pytest.mark.parametrize("tier", ["device", "host"])
@pytest.mark.parametrize(("num_rows", "width"), [(0, WIDTH), (4, WIDTH), (9, WIDTH), (30, 4), (7, 1)])
def test_rows_of_a_lease_are_copied_bit_for_bit(tier: str, num_rows: int, width: int) -> None:
    cache = make_cache(8, 8, **CACHE)
    rows = make_rows(num_rows, width, torch.bfloat16)
    assert cache.put(KEY, rows, tier=tier)
    with (
        cache.get(KEY) as lease,
        cache.reserve(OTHER, num_rows, row_width=width, contiguous=True) as reservation,
    ):
        reservation.write(lease)
        assert reservation.commit()
    assert same_bits(read(cache, OTHER), rows)
    assert same_bits(read(cache, KEY), rows)
    cache.check_integrity()


def test_pages_that_are_adjacent_in_both_pools_are_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(8, 8, **CACHE)
    for number in range(4):
        cache.put(bytes([number]) * 32, make_rows(4, WIDTH, torch.bfloat16), tier="host")
    cache.discard(bytes([1]) * 32)
    cache.discard(bytes([3]) * 32)
    rows = make_rows(20, WIDTH, torch.bfloat16)
    assert cache.put(KEY, rows, tier="host")  # pages that are not adjacent
    lease = cache.get(KEY)
    runs = len(lease.segments())
    assert 1 < runs < 5
    copied: list[int] = []
    copy_ = torch.Tensor.copy_

    def count(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        copied.append(len(source))
        return copy_(self, source, non_blocking)

    reservation = cache.promote(lease, contiguous=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", count)
        reservation.write(lease)
    assert (len(copied), sum(copied)) == (runs, 20)
    assert reservation.commit()
    lease.release()
    assert same_bits(read(cache, KEY), rows)


def test_leased_entry_may_be_dropped_and_replaced_after_the_write() -> None:
    cache = make_cache(4, 2, **CACHE)
    rows = make_rows(8, WIDTH, torch.bfloat16)
    cache.put(KEY, rows, tier="host")
    reservation = cache.reserve(OTHER, 8)
    with cache.get(KEY) as lease:
        reservation.write(lease)
    assert cache.put(KEY, make_rows(8, WIDTH, torch.bfloat16), tier="host")
    assert reservation.commit()
    assert same_bits(read(cache, OTHER), rows)


def released(cache: EmbeddingCache) -> Lease:
    lease = cache.get(KEY)
    lease.release()
    return lease


def foreign(cache: EmbeddingCache) -> Lease:
    other = make_cache(8, 8, **CACHE)
    other.put(KEY, make_rows(6, WIDTH, torch.bfloat16))
    return other.get(KEY)


def leased_after(num_rows: int, width: int) -> Callable[[EmbeddingCache], Lease]:
    def lease(cache: EmbeddingCache) -> Lease:
        cache.put(KEY, make_rows(num_rows, width, torch.bfloat16))
        return cache.get(KEY)

    return lease


@pytest.mark.parametrize(
    ("make_lease", "error", "match"),
    [
        (released, RuntimeError, "this lease of 6 rows was released"),
        (foreign, ValueError, "rows is a lease of 6 rows of another cache"),
        (leased_after(5, WIDTH), ValueError, r"lease of shape \(5, 12\), .* the reserved shape \(6, 12\)"),
        (leased_after(6, 4), ValueError, r"lease of shape \(6, 4\), .* the reserved shape \(6, 12\)"),
        (leased_after(18, 4), ValueError, r"lease of shape \(18, 4\), .* the reserved shape \(6, 12\)"),
        (lambda cache: cache.get_many([KEY]), TypeError, "rows must be a tensor, got list"),
    ],
    ids=["released", "foreign", "num_rows", "width", "same bytes", "list"],
)
def test_lease_that_does_not_fit_is_refused_and_nothing_is_written(
    make_lease: Callable[[EmbeddingCache], Any], error: type[Exception], match: str
) -> None:
    cache = make_cache(8, 8, **CACHE)
    cache.put(KEY, make_rows(6, WIDTH, torch.bfloat16))
    reservation = cache.reserve(OTHER, 6)
    rows = make_rows(6, WIDTH, torch.bfloat16)
    reservation.write(rows)
    lease = make_lease(cache)
    with pytest.raises(error, match=match):
        reservation.write(lease)
    assert same_bits(reservation.to_tensor(), rows)
    del lease
    assert reservation.commit()
    assert same_bits(read(cache, OTHER), rows)


def test_write_of_a_lease_after_the_commit_raises() -> None:
    cache = make_cache(8, 8, **CACHE)
    cache.put(KEY, make_rows(6, WIDTH, torch.bfloat16))
    reservation = cache.reserve(OTHER, 6)
    assert reservation.commit()
    with cache.get(KEY) as lease, pytest.raises(RuntimeError, match="was committed or cancelled"):
        reservation.write(lease)
