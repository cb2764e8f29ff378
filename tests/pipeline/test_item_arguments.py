"""Arguments of items, chunks and pipelines: types, bools and combinations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from pipeline_scene import Tower

from vitcache import Chunk, Item, Items, Span, VisionPipeline

KEY = bytes(32)


@pytest.mark.parametrize("value", [True, False, np.True_, torch.tensor(True)])
def test_bools_are_no_numbers(value: Any) -> None:
    items = Items([])
    calls: list[tuple[str, Any]] = [
        ("num_rows", lambda: Item(None, None, num_rows=value)),
        ("row_width", lambda: Item(None, None, row_width=value)),
        ("start", lambda: Chunk([], value, 1)),
        ("length", lambda: Chunk([], 0, value)),
        ("token_offset", lambda: Chunk([], 0, 1, value)),
        ("start", lambda: items.within(value, 1)),
        ("stop", lambda: items.within(0, value)),
        ("max_rows_per_encode", lambda: VisionPipeline(Tower(), make_cache(), max_rows_per_encode=value)),
        ("keep_bytes", lambda: VisionPipeline(Tower(), make_cache(), keep_bytes=value)),
    ]
    for name, call in calls:
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            call()


def test_numpy_integers_are_numbers() -> None:
    item = Item(None, Span(0, 2), num_rows=np.int64(3), row_width=np.int32(4))
    assert (type(item.num_rows), item.num_rows, type(item.row_width), item.row_width) == (int, 3, int, 4)
    chunk = Chunk([item], np.int64(1), np.int32(2), np.int8(3))
    assert (chunk.start, chunk.length, chunk.token_offset) == (1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"row_width": 0}, ValueError, "row_width is 0, it must be at least 1"),
        ({"row_width": 2.0}, TypeError, "row_width must be an int, got 2.0 of type float"),
        ({"num_rows": "3"}, TypeError, "num_rows must be an int, got '3' of type str"),
        ({"complete_key": True}, ValueError, "complete_key is True, but key is None"),
        ({"complete_key": 1, "key": KEY}, TypeError, "complete_key must be a bool, got int"),
        ({"move_feature": 0}, TypeError, "move_feature must be a bool, got int"),
        ({"move_feature": None}, TypeError, "move_feature must be a bool, got NoneType"),
        ({"rows": torch.ones(2, 4), "row_width": 3}, ValueError, r"shape \(num_rows, 3\), got \(2, 4\)"),
        (
            {"rows": torch.ones(2, 4), "num_rows": 3, "row_width": 4},
            ValueError,
            r"shape \(3, 4\), got \(2, 4\)",
        ),
    ],
)
def test_item_refuses_wrong_arguments(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Item(None, Span(0, 2), **arguments)


@pytest.mark.parametrize("wrong", [5, 0, True, object(), torch.tensor(1)])
def test_spans_and_items_that_cannot_be_iterated_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="spans must be a sequence of Span, got"):
        Item(None, wrong)
    for make in (Items, lambda items: Chunk(items, 0, 1)):
        with pytest.raises(TypeError, match="items must be a sequence of Item, got"):
            make(wrong)


def test_spans_of_several_tensor_elements_are_refused() -> None:
    with pytest.raises(TypeError, match="spans must be Span objects, got Tensor"):
        Item(None, torch.tensor([1, 2]))  # type: ignore[arg-type]


def test_item_stores_its_arguments() -> None:
    item = Item(None, Span(0, 2), key=KEY, complete_key=True, row_width=8, context=7, grid=1)
    assert (item.key, item.complete_key, item.row_width, item.context) == (KEY, True, 8, 7)
    assert (item.move_feature, Item(None, None, move_feature=False).move_feature) == (True, False)
    assert item.encoder_kwargs == {"grid": 1}
    plain = Item(None, None)
    assert (plain.complete_key, plain.row_width, plain.context) == (False, None, None)
