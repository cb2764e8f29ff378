"""`split_by_leading_dim`: items are the indices of the first dimension."""

from __future__ import annotations

import torch

from vitcache.adapters.splits.leading_dim import split_by_leading_dim


def test_items_are_consecutive_indices() -> None:
    pixels = torch.randn(3, 3, 4, 4)
    parts = split_by_leading_dim(None, {"pixel_values": pixels, "vision_feature_layer": None})
    assert parts is not None
    assert parts.names == ("pixel_values",)
    assert parts.bounds is not None
    for item, (first, last) in enumerate(parts.bounds):
        pixels_of_item = parts.item_call(item).pixels
        assert torch.equal(pixels_of_item, pixels[item : item + 1])
        assert torch.equal(pixels.flatten()[first:last].view(parts.shapes[item]), pixels_of_item)


def test_older_name_of_the_pixels_is_not_passed_on() -> None:
    arguments = {"pixel_values": torch.zeros(2, 3, 4, 4), "pixel_values_images": None}
    parts = split_by_leading_dim(None, arguments)
    assert parts is not None
    assert parts.names == tuple(arguments)
    assert list(parts.item_call(0).arguments) == ["pixel_values"]
