"""`split_by_image_size`: items are the tiles of each image."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from vitcache.adapters.splits.call_parts import CallParts
from vitcache.adapters.splits.tiles import split_by_image_size

pytestmark = pytest.mark.transformers

CONFIG = SimpleNamespace(
    image_grid_pinpoints=[[8, 8], [8, 16], [16, 16]], vision_config=SimpleNamespace(image_size=8)
)
TILES = {(8, 8): 2, (8, 14): 3, (15, 15): 5}
"""Tiles of images of these sizes: an overview, and the parts of the image."""


def split(pixels: Tensor, sizes: object, **groups: object) -> CallParts:
    parts = split_by_image_size(CONFIG, {"pixel_values": pixels, "image_sizes": sizes} | groups)
    assert parts is not None
    return parts


@pytest.mark.parametrize("form", ["padded", "end to end"])
def test_items_are_the_tiles_of_one_image_without_padding(form: str) -> None:
    tiles = [torch.randn(count, 3, 8, 8) for count in TILES.values()]
    if form == "padded":
        pixels = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True, padding_value=7.0)
        items = [item[None] for item in tiles]
    else:
        pixels, items = torch.cat(tiles), tiles
    parts = split(pixels, torch.tensor(list(TILES)))
    assert parts.names == ("pixel_values", "image_sizes")
    assert parts.bounds is not None
    for number, (item, size, (first, last)) in enumerate(zip(items, TILES, parts.bounds, strict=True)):
        call = parts.item_call(number)
        assert torch.equal(call.pixels, item)
        assert call.arguments == {"pixel_values": call.pixels, "image_sizes": [list(size)]}
        assert torch.equal(pixels.flatten()[first:last].view(parts.shapes[number]), item)


def test_image_among_several_of_a_prompt_has_one_tile() -> None:
    pixels, sizes = torch.randn(3, 5, 3, 8, 8), [[15, 15]] * 3
    parts = split(pixels, sizes, batch_num_images=torch.tensor([2, 1]))
    assert [shape[1] for shape in parts.shapes] == [1, 1, 5]
    assert [parts.item_call(item).arguments["batch_num_images"] for item in range(3)] == [[2], [2], [1]]


@pytest.mark.parametrize(
    ("shape", "sizes", "groups", "message"),
    [
        ((1, 5), [[8, 8]] * 2, {}, "pixel_values must have 2 images for this image_sizes, got 1"),
        ((6,), [[8, 8]] * 2, {}, "pixel_values must have 4 tiles for this image_sizes, got 6"),
        (
            (4,),
            [[8, 8]] * 2,
            {"batch_num_images": [3]},
            "image_sizes must have 3 sizes for this batch_num_images, got 2",
        ),
    ],
)
def test_wrong_numbers_raise_with_both_numbers(shape: tuple, sizes: list, groups: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(torch.zeros(*shape, 3, 8, 8), sizes, **groups)
