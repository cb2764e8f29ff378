"""`Item`, `Items` and `Chunk`: their arguments, and the items that overlap a range of tokens."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcache import Chunk, Item, Items, Span

ROWS = torch.zeros(3, 4)


def test_item_accepts_one_span_several_spans_or_none() -> None:
    assert Item(None, Span(3, 2)).spans == (Span(3, 2),)
    assert Item(None, [Span(3, 2), Span(9, 1, 2)]).num_rows == 3
    for empty in (None, [], ()):
        item = Item(None, empty)
        assert (item.spans, item.num_rows) == ((), 0)


def test_item_keeps_other_keyword_arguments_as_encoder_kwargs() -> None:
    assert Item(None, None, grid=(1, 2, 3), tiles=4).encoder_kwargs == {"grid": (1, 2, 3), "tiles": 4}


def test_item_accepts_more_rows_than_its_spans_need() -> None:
    assert Item(None, Span(0, 2, 1), num_rows=np.int64(7)).num_rows == 7
    assert Item(None, Span(0, 2), rows=ROWS).num_rows == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"spans": [3]}, TypeError, "spans must be Span objects, got int"),
        (
            {"spans": Span(0, 4, 1), "num_rows": 4},
            ValueError,
            "the spans need 5 rows, but num_rows is 4",
        ),
        ({"key": "a"}, TypeError, "key must be bytes, got str"),
        ({"key": b"a"}, ValueError, "key has 1 bytes, it must have 32"),
        ({"rows": [1]}, TypeError, "rows must be a tensor, got list"),
        ({"rows": ROWS, "feature": 1}, ValueError, "either a feature or rows, got both"),
        ({"rows": ROWS[0]}, ValueError, r"rows must have shape \(num_rows, row_width\), got \(4,\)"),
        ({"rows": ROWS, "num_rows": 2}, ValueError, r"rows must have shape \(2, row_width\), got \(3, 4\)"),
        ({"rows": ROWS, "spans": Span(0, 4)}, ValueError, "the spans need 4 rows, but num_rows is 3"),
    ],
)
def test_item_refuses_invalid_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Item(arguments.pop("feature", None), arguments.pop("spans", None), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], -1, 2), ValueError, "start must be at least 0, got -1"),
        (([], 0, -2), ValueError, "length must be at least 0, got -2"),
        (([], 0, 2, -3), ValueError, "token_offset must be at least 0, got -3"),
        (([1], 0, 2), TypeError, "item 0 must be an Item, got int"),
        (([], 0.5, 2), TypeError, "start must be an int, got 0.5 of type float"),
    ],
)
def test_chunk_refuses_invalid_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Chunk(*arguments)


spans = st.builds(Span, st.integers(0, 60), st.integers(0, 9), st.just(0))


@given(st.lists(st.lists(spans, max_size=3), max_size=12), st.integers(0, 70), st.integers(0, 30))
def test_items_within_returns_every_overlapping_item_by_first_token(
    spans_of: list[list[Span]], start: int, length: int
) -> None:
    items = Items([Item(None, spans) for spans in spans_of])
    within = items.within(start, start + length)
    overlapping = {
        number: sorted(found)
        for number, spans in enumerate(spans_of)
        if (found := [span for span in spans if max(span.start, start) < min(span.stop, start + length)])
    }
    assert within == overlapping
    firsts = [spans[0].start for spans in within.values()]
    assert firsts == sorted(firsts)


def test_items_within_reads_only_items_near_the_tokens() -> None:
    positions: list[int] = []

    class RecordingTuple(tuple[Item, ...]):
        """Records the position of each item that is read."""

        def __getitem__(self, key: Any) -> Any:
            positions.append(key)
            return super().__getitem__(key)

        def __iter__(self) -> Any:
            raise AssertionError("all items are read")

    items = Items([Item(None, Span(10 * number, 5)) for number in range(100_000)])
    items._items = RecordingTuple(items._items)
    assert list(items.within(500_000, 500_020)) == [50_000, 50_001]
    assert positions == [50_000, 50_001]
    assert Chunk(items, 0, 1).items is items


@pytest.mark.parametrize("start", range(6))
def test_items_within_an_empty_range_is_empty(start: int) -> None:
    assert Items([Item(None, Span(1, 4))]).within(start, start) == {}


@pytest.mark.parametrize("far", [2**61, 2**64, 2**80])
def test_items_within_accepts_any_integers(far: int) -> None:
    items = Items([Item(None, Span(1, 4)), Item(None, Span(2**60, 1))])
    assert list(items.within(-far, far)) == [0, 1]
    assert list(items.within(2, far)) == [0, 1]
    assert items.within(far, far + 5) == items.within(-far, -5) == {}
    assert list(items.within(np.int64(2), np.int64(3))) == [0]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (Item(None, Span(2**60 + 1, 2)), "item 1: span start is 1152921504606846977, it must be at most"),
        (Item(None, Span(0, 2**62)), f"item 1: span length is {2**62}, it must be at most {2**60}"),
        (Item(None, Span(2**70, 1)), f"item 1: {2**70} is beyond 64 bits"),
        (Item(None, None, num_rows=2**64), f"item 1: {2**64} is beyond 64 bits"),
    ],
)
def test_items_refuses_numbers_whose_sums_could_overflow(item: Item, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        Items([Item(None, None), item])


def test_items_accepts_any_empty_span() -> None:
    assert Items([Item(None, [Span(2**62, 0), Span(1, 2, 2**60)])]).within(0, 2**70) == {
        0: [Span(1, 2, 2**60)]
    }


def test_items_can_be_copied_and_pickled() -> None:
    items = Items([Item(None, Span(1, 4), key=bytes(32)), Item(None, Span(6, 2))])
    for copied in (copy.copy(items), copy.deepcopy(items), pickle.loads(pickle.dumps(items))):
        assert isinstance(copied, Items)
        assert copied.within(0, 9) == items.within(0, 9)
        assert copied[0].key == bytes(32)
