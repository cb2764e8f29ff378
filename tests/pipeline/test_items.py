"""Items, the order in which a window finds them, and chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcache import Chunk, Item, Items, Span

ROWS = torch.zeros(3, 4)


def test_an_item_takes_one_span_several_or_none() -> None:
    assert Item(None, Span(3, 2)).spans == (Span(3, 2),)
    assert Item(None, [Span(3, 2), Span(9, 1, 2)]).num_rows == 3
    for none in (None, [], ()):
        item = Item(None, none)
        assert (item.spans, item.num_rows) == ((), 0)


def test_other_arguments_are_for_the_encoder() -> None:
    assert Item(None, None, grid=(1, 2, 3), tiles=4).encoder_kwargs == {"grid": (1, 2, 3), "tiles": 4}


def test_num_rows_may_be_more_than_the_spans_reach() -> None:
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
        ({"key": "a"}, TypeError, "key must be bytes, it is str"),
        ({"key": b"a"}, ValueError, "key is of 1 bytes, it must be of 32"),
        ({"rows": [1]}, TypeError, "rows must be a tensor, got list"),
        ({"rows": ROWS, "feature": 1}, ValueError, "either a feature or rows, got both"),
        ({"rows": ROWS[0]}, ValueError, r"rows must have shape \(num_rows, row_width\), got \(4,\)"),
        ({"rows": ROWS, "num_rows": 2}, ValueError, r"rows must have shape \(2, row_width\), got \(3, 4\)"),
        ({"rows": ROWS, "spans": Span(0, 4)}, ValueError, "the spans need 4 rows, but num_rows is 3"),
    ],
)
def test_what_cannot_be_an_item_is_refused(
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
        (([], 0.5, 2), TypeError, "integer"),
    ],
)
def test_what_cannot_be_a_chunk_is_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Chunk(*arguments)


spans = st.builds(Span, st.integers(0, 60), st.integers(0, 9), st.just(0))


@given(st.lists(st.lists(spans, max_size=3), max_size=12), st.integers(0, 70), st.integers(0, 30))
def test_a_window_finds_every_item_that_overlaps_it(
    placed: list[list[Span]], start: int, length: int
) -> None:
    items = Items([Item(None, where) for where in placed])
    within = items.within(start, start + length)
    overlapping = {
        number: sorted(found)
        for number, where in enumerate(placed)
        if (found := [span for span in where if max(span.start, start) < min(span.stop, start + length)])
    }
    assert within == overlapping
    firsts = [spans[0].start for spans in within.values()]
    assert firsts == sorted(firsts)


def test_a_window_looks_at_no_item_far_from_it() -> None:
    items = Items([Item(None, Span(10 * number, 5)) for number in range(100_000)])
    assert list(items.within(500_000, 500_020)) == [50_000, 50_001]
    assert Chunk(items, 0, 1).items is items


@pytest.mark.parametrize("start", range(6))
def test_a_window_without_tokens_overlaps_nothing(start: int) -> None:
    assert Items([Item(None, Span(1, 4))]).within(start, start) == {}
