"""Reservations: pages that a launch or `write` writes, and that are committed or cancelled."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import make_cache
from pairwise import pairwise
from placement_cases import FLOAT_DTYPES, expected_scatter, make_rows, poisoned, same_bits

from vitcache import EmbeddingCache, PlacementTable, Reservation, Span, embed_tokens, scatter_embeddings

KEY, OTHER = bytes(32), bytes([1]) * 32
WIDTH, PAGE_ROWS = 12, 4


CACHE: dict[str, Any] = {"width": WIDTH, "dtype": torch.bfloat16, "page_rows": PAGE_ROWS}


def reserve(cache: EmbeddingCache, num_rows: int, key: bytes = KEY) -> Reservation:
    reservation = cache.reserve(key, num_rows)
    assert reservation is not None
    return reservation


def read(cache: EmbeddingCache, key: bytes = KEY) -> torch.Tensor:
    lease = cache.get(key)
    assert lease is not None
    with lease:
        return lease.to_tensor()


def test_reserved_rows_are_in_the_cache_only_after_commit() -> None:
    cache, rows = make_cache(8, **CACHE), make_rows(6, WIDTH, torch.float32)
    with reserve(cache, 6) as reservation:
        assert (reservation.key, reservation.num_rows, reservation.row_width) == (KEY, 6, WIDTH)
        assert (reservation.dtype, reservation.device) == (torch.bfloat16, torch.device("cpu"))
        reservation.write(rows)
        assert KEY not in cache
        assert reservation.commit()
    assert same_bits(read(cache), rows.bfloat16())
    cache.check_integrity()


@pytest.mark.parametrize(
    "end", [Reservation.cancel, lambda r: r.__exit__(None, None, None), lambda r: None], ids=range(3)
)
def test_reservation_that_is_not_committed_frees_its_pages(end: Callable[[Reservation], None]) -> None:
    cache = make_cache(2, **CACHE)
    assert cache.put(OTHER, make_rows(4, WIDTH, torch.float32))
    reservation = reserve(cache, 5)
    assert cache.stats().evictions == 1
    end(reservation)
    del reservation
    gc.collect()
    assert KEY not in cache
    assert cache.stats().device_bytes == 0
    cache.check_integrity()
    assert cache.put(KEY, make_rows(8, WIDTH, torch.float32))


def test_reserved_pages_are_not_available_to_another_write() -> None:
    cache = make_cache(2, **CACHE)
    with reserve(cache, 8) as reservation:
        assert cache.reserve(OTHER, 1) is None
        assert not cache.put(OTHER, make_rows(1, WIDTH, torch.float32))
        reservation.cancel()
        reservation.cancel()
        assert cache.put(OTHER, make_rows(1, WIDTH, torch.float32))
        with pytest.raises(RuntimeError, match="this reservation of 8 rows was committed or cancelled"):
            reservation.commit()
        with pytest.raises(RuntimeError, match="committed or cancelled"):
            reservation.write(make_rows(8, WIDTH, torch.float32))


def test_commit_after_an_epoch_change_or_close_inserts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    cache = make_cache(8, **CACHE)
    with reserve(cache, 2) as reservation:
        reservation.write(make_rows(2, WIDTH, torch.float32))
        cache.advance_epoch()
        assert not reservation.commit()
    assert "the rows are of epoch 0, the cache is in epoch 1" in caplog.text
    assert cache.reserve(KEY, 2, epoch=0) is None
    closed = reserve(cache, 2)
    cache.close()
    assert not closed.commit()


def test_reserve_and_write_invalid_arguments_raise_and_name_them() -> None:
    cache = make_cache(8, **CACHE)
    with pytest.raises(ValueError, match="num_rows is -1, it must be at least 0"):
        cache.reserve(KEY, -1)
    with pytest.raises(TypeError, match="num_rows must be an int"):
        cache.reserve(KEY, 1.5)
    with pytest.raises(ValueError, match="key has 3 bytes"):
        cache.reserve(b"key", 1)
    with (
        reserve(cache, 3) as reservation,
        pytest.raises(ValueError, match="rows has 2 rows, it must have 3, as reserved"),
    ):
        reservation.write(make_rows(2, WIDTH, torch.float32))
    cache.check_integrity()


@pairwise(source=FLOAT_DTYPES, stored=FLOAT_DTYPES, scale=[None, 0.3])
def test_scatter_with_store_places_the_same_bits_as_a_later_hit(device, source, stored, scale) -> None:
    cache = make_cache(8, device=device, **(CACHE | {"dtype": stored}))
    rows = [make_rows(count, WIDTH, source, device) for count in (7, 3)]
    spans = [[Span(2, 3, 4), Span(9, 2, 3)], 6]
    out = poisoned(12, WIDTH, dtype=torch.float16, device=device)
    expected, _ = expected_scatter(out, [rows[0].to(stored), rows[1]], spans, scale=scale)
    with reserve(cache, 7) as reservation:
        assert scatter_embeddings(out, rows, spans, scale=scale, store=[reservation, None]) is out
        assert reservation.commit()
    assert same_bits(out, expected)
    assert same_bits(read(cache), rows[0].to(stored))
    out_of_hit = poisoned(12, WIDTH, dtype=torch.float16, device=device)
    lease = cache.get(KEY, num_rows=7)
    assert same_bits(scatter_embeddings(out_of_hit, [lease, rows[1]], spans, scale=scale), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_embed_with_store_writes_mixed_dtypes_and_deepstack(device, stored) -> None:
    cache, hidden = make_cache(8, device=device, **(CACHE | {"dtype": stored})), WIDTH // 3
    weight = make_rows(9, hidden, torch.bfloat16, device)
    ids = torch.randint(0, 9, (11,), device=device)
    rows = [
        make_rows(count, WIDTH, dtype, device) for count, dtype in ((5, torch.float32), (4, torch.bfloat16))
    ]
    rows.append(make_rows(2, WIDTH, torch.float32, device))
    spans = [Span(1, 2, 2), [Span(5, 2, 0)], []]
    reservations = [reserve(cache, len(item), bytes([number]) * 32) for number, item in enumerate(rows)]
    deepstack = poisoned(2, 11, hidden, dtype=torch.bfloat16, device=device)
    out = embed_tokens(ids, weight, rows, spans, deepstack=deepstack, store=reservations)
    assert all(reservation.commit() for reservation in reservations)
    for number, item in enumerate(rows):
        assert same_bits(read(cache, bytes([number]) * 32), item.to(stored))
    text = poisoned(2, 11, hidden, dtype=torch.bfloat16, device=device)
    rounded = [item.to(stored) for item in rows]
    assert same_bits(out, embed_tokens(ids, weight, rounded, spans, deepstack=text))
    assert same_bits(deepstack, text)
    cache.check_integrity()


def test_written_reservation_can_be_placed(device) -> None:
    cache, rows = make_cache(8, device=device, **CACHE), make_rows(6, WIDTH, torch.bfloat16, device)
    with reserve(cache, 6) as reservation, reserve(cache, 0, OTHER) as empty:
        reservation.write(rows)
        assert same_bits(reservation.to_tensor(), rows)
        assert empty.to_tensor().shape == (0, WIDTH)
        out = poisoned(8, WIDTH, dtype=torch.bfloat16, device=device)
        scatter_embeddings(out, [reservation, empty], [Span(1, 4, 2), 7])
        assert same_bits(out[1:5], rows[2:])
        base = torch.zeros(8, WIDTH, dtype=torch.bfloat16, device=device, requires_grad=True)
        scatter_embeddings(base * 1, [reservation], [Span(1, 4, 2)]).sum().backward()
        assert base.grad.sum(1).tolist() == [WIDTH, 0, 0, 0, 0, WIDTH, WIDTH, WIDTH]


def test_item_without_spans_is_stored_and_not_placed(device) -> None:
    cache, rows = make_cache(8, device=device, **CACHE), make_rows(6, WIDTH, torch.bfloat16, device)
    out = poisoned(3, WIDTH, dtype=torch.bfloat16, device=device)
    with reserve(cache, 6) as reservation:
        scatter_embeddings(out, [rows], [[]], store=[reservation])
        assert reservation.commit()
    assert out.isnan().all()
    assert same_bits(read(cache), rows)


def test_packed_tensor_is_stored_as_one_item(device) -> None:
    cache, rows = make_cache(8, device=device, **CACHE), make_rows(6, WIDTH, torch.bfloat16, device)
    out = poisoned(4, WIDTH, dtype=torch.bfloat16, device=device)
    with reserve(cache, 6) as reservation:
        scatter_embeddings(out, rows, torch.tensor([[1, 2, 3]]), store=[reservation])
        assert reservation.commit()
    assert same_bits(out[1:3], rows[3:5])
    assert same_bits(read(cache), rows)


def test_invalid_store_raises_and_writes_nothing(device) -> None:
    cache, rows = make_cache(8, device=device, **CACHE), make_rows(3, WIDTH, torch.bfloat16, device)
    out = poisoned(4, WIDTH, dtype=torch.bfloat16, device=device)
    other = make_cache(8, device=device, **(CACHE | {"dtype": torch.float32}))
    with reserve(cache, 3) as three, reserve(cache, 2, OTHER) as two, reserve(other, 3) as wide:

        def check_raises(error: type[Exception], words: str, store: object, *items: torch.Tensor) -> None:
            with pytest.raises(error, match=words):
                scatter_embeddings(out, [rows, *items], [0, *([] for _ in items)], store=store)

        check_raises(ValueError, "item 0 has 3 rows, the pages to store it in have 2", [two])
        check_raises(ValueError, "got 1 embeddings and 2 entries of store", [three, None])
        check_raises(ValueError, "items 0 and 1 have the same reservation", [three, three], rows)
        check_raises(
            ValueError,
            "items 0 and 1 would be stored as torch.bfloat16 and torch.float32",
            [three, wide],
            rows,
        )
        check_raises(TypeError, "item 0: store must be a Reservation or None, got bytes", [KEY])
        check_raises(TypeError, "store must be a list", three)
        with pytest.raises(
            ValueError, match="the reservation of item 0 has rows of width 12, the destination takes 6"
        ):
            scatter_embeddings(out[:, :6], [rows[:, :6]], [0], store=[three])
        with pytest.raises(ValueError, match="store= cannot be combined with a gradient"):
            scatter_embeddings(out, [rows.clone().requires_grad_()], [0], store=[three])
        table = PlacementTable(4, device=device)
        table.update([rows], [0])
        with pytest.raises(ValueError, match="store= cannot be combined with a PlacementTable"):
            scatter_embeddings(out, table, None, store=[three])
        three.cancel()
        check_raises(RuntimeError, "item 0: its reservation was committed or cancelled", [three])
    assert out.isnan().all()
    cache.check_integrity()


def test_store_over_its_own_source_raises_and_writes_nothing(device) -> None:
    cache, rows = make_cache(8, device=device, **CACHE), make_rows(6, WIDTH, torch.bfloat16, device)
    out = poisoned(6, WIDTH, dtype=torch.bfloat16, device=device)
    with reserve(cache, 2, OTHER) as other, reserve(cache, 3) as reservation:
        other.write(rows[:2])
        reservation.write(rows[2:5])
        [page] = reservation.segments()
        for item in (page, page[2:].expand(3, WIDTH)):
            with pytest.raises(ValueError, match="item 1 shares memory with the storage of item 1"):
                scatter_embeddings(out, [rows[:1], item], [0, 3], store=[None, reservation])
        assert out.isnan().all()
        [neighbour] = other.segments()
        scatter_embeddings(out, [neighbour, rows[:3]], [0, 3], store=[None, reservation])
    assert same_bits(out[:2], rows[:2])


def test_embed_bad_id_raises_and_leaves_the_pages_unchanged() -> None:
    cache, rows = make_cache(8, **CACHE), make_rows(2, WIDTH, torch.bfloat16)
    weight, ids = make_rows(3, WIDTH, torch.bfloat16), torch.tensor([0, 9, 9, 3])
    with reserve(cache, 2) as reservation:
        reservation.write(torch.zeros(2, WIDTH))
        with pytest.raises(IndexError, match=r"input_ids\[3\] is 3, the weight has 3 rows"):
            embed_tokens(ids, weight, [rows], [1], store=[reservation])
        assert not reservation.to_tensor().any()


def test_compiled_call_with_store_raises() -> None:
    cache, rows = make_cache(8, **CACHE), make_rows(3, WIDTH, torch.bfloat16)
    with reserve(cache, 3) as reservation:
        compiled = torch.compile(
            lambda out: scatter_embeddings(out, [rows], [0], store=[reservation]), backend="eager"
        )
        with pytest.raises(Exception, match=r"store= cannot be combined with torch\.compile"):
            compiled(poisoned(4, WIDTH, dtype=torch.bfloat16))
