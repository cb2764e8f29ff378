"""`split_navit`: the patches of all images side by side, divided by the images' sizes."""

from __future__ import annotations

import pytest
import torch

from vitcache.adapters.splits.navit import split_navit

PATCH = 4
SIZES = torch.tensor([[2, 4], [4, 4]], dtype=torch.int32)


def pixels(patches: int) -> torch.Tensor:
    return torch.randn(1, 3, PATCH, PATCH * patches)


def test_split_navit_gives_each_image_the_columns_of_its_patches() -> None:
    packed = pixels(8 + 16)
    parts = split_navit(None, {"pixel_values": packed, "target_sizes": SIZES})
    assert parts is not None
    items = [parts.item_call(item).arguments for item in range(2)]
    assert torch.equal(torch.cat([item["pixel_values"] for item in items], dim=-1), packed)
    assert [item["pixel_values"].shape for item in items] == parts.shapes
    assert [shape[-1] for shape in parts.shapes] == [PATCH * 8, PATCH * 16]
    assert torch.equal(torch.cat([item["target_sizes"] for item in items]), SIZES)


def test_split_navit_of_pixels_in_another_form_calls_the_stock_method() -> None:
    stacked = pixels(12).repeat(2, 1, 1, 1)
    assert split_navit(None, {"pixel_values": stacked, "target_sizes": SIZES}) is None


def test_split_navit_refuses_another_number_of_columns() -> None:
    with pytest.raises(ValueError, match="pixel_values must have 96 columns for this target_sizes, got 92"):
        split_navit(None, {"pixel_values": pixels(23), "target_sizes": SIZES})
