"""Splits by the first dimension: items are the indices of the pixels, and of other tensors."""

from __future__ import annotations

import pytest
import torch

from vitcache.adapters.splits.call_parts import CallParts
from vitcache.adapters.splits.leading_dim import split_by_index, split_by_leading_dim, split_by_stack

PIXELS = torch.randn(3, 4, 2)
POSITIONS = torch.arange(24).view(3, 4, 2)


def assert_consecutive(parts: CallParts, pixels: torch.Tensor) -> None:
    """Item i is index i of the pixels, and the elements from its first bound to its second one."""
    assert parts.bounds is not None
    assert len(parts.bounds) == len(parts.shapes) == len(pixels)
    for item, (first, last) in enumerate(parts.bounds):
        pixels_of_item = parts.item_call(item).pixels
        assert torch.equal(pixels_of_item, pixels[item : item + 1])
        assert torch.equal(pixels.flatten()[first:last].view(parts.shapes[item]), pixels_of_item)


def test_items_are_consecutive_indices() -> None:
    pixels = torch.randn(3, 3, 4, 4)
    parts = split_by_leading_dim(None, {"pixel_values": pixels, "vision_feature_layer": None})
    assert parts.names == ("pixel_values",)
    assert_consecutive(parts, pixels)


def test_older_name_of_the_pixels_is_not_passed_on() -> None:
    arguments = {"pixel_values": torch.zeros(2, 3, 4, 4), "pixel_values_images": None}
    parts = split_by_leading_dim(None, arguments)
    assert parts.names == tuple(arguments)
    assert list(parts.item_call(0).arguments) == ["pixel_values"]


def test_items_of_a_stack_have_one_slice_per_frame() -> None:
    pixels = torch.randn(2, 5, 3, 4, 4)
    parts = split_by_stack(None, {"pixel_values_videos": pixels, "vision_feature_layer": None})
    assert parts.names == ("pixel_values_videos",)
    assert_consecutive(parts, pixels)
    assert [parts.item_call(item).slices for item in range(2)] == [5, 5]
    rows = 7  # of each frame
    assert parts.elements([rows * 5] * 2) == [rows] * 10


def test_rows_of_a_stack_that_are_not_a_multiple_of_its_slices_raise() -> None:
    parts = split_by_stack(None, {"pixel_values_videos": torch.randn(2, 5, 3, 4, 4)})
    with pytest.raises(RuntimeError, match="item 1 has 7 rows, expected 5 slices of equal length"):
        parts.elements([10, 7])


def test_split_by_index_gives_each_item_its_index_of_all_tensors() -> None:
    parts = split_by_index("positions")(None, {"pixels": PIXELS, "positions": POSITIONS, "scale": 2})
    assert parts.names == ("pixels", "positions")
    assert_consecutive(parts, PIXELS)
    for item in range(3):
        assert torch.equal(parts.item_call(item).arguments["positions"], POSITIONS[item : item + 1])


def test_split_by_index_leaves_out_an_argument_that_is_none() -> None:
    parts = split_by_index("mask")(None, {"pixels": PIXELS, "mask": None})
    assert parts.names == ("pixels",)
    assert list(parts.item_call(0).arguments) == ["pixels"]


def test_split_by_index_refuses_another_number_of_rows() -> None:
    with pytest.raises(ValueError, match="positions must have 3 rows for this pixels, got 2"):
        split_by_index("positions")(None, {"pixels": PIXELS, "positions": POSITIONS[:2]})
