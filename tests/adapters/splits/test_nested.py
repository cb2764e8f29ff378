"""`split_nested`, `split_nested_sizes`, `split_nested_tiles`: the images of each prompt without padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts
from vitcache.adapters.splits.nested import split_nested, split_nested_sizes, split_nested_tiles


def nested(*images: Tensor | None, per_prompt: int, size: tuple[int, int]) -> dict:
    """Prompts with these images, padded to this size. None is an image of padding."""
    pixels, masks = torch.zeros(len(images), 3, *size), torch.zeros(len(images), *size, dtype=torch.long)
    for place, image in enumerate(images):
        if image is not None:
            height, width = image.shape[-2:]
            pixels[place, :, :height, :width] = image
            masks[place, :height, :width] = 1
    shape = (-1, per_prompt)
    return {"pixel_values": pixels.unflatten(0, shape), "pixel_attention_mask": masks.unflatten(0, shape)}


def test_split_nested_has_one_group_per_prompt_and_no_item_for_padding() -> None:
    images = torch.randn(3, 3, 8, 8)
    call = nested(images[0], None, images[1], images[2], per_prompt=2, size=(8, 8))
    parts = split_nested(None, call)
    assert isinstance(parts, CallParts)
    assert parts.groups == [1, 2]
    for item, image in enumerate(images):
        assert torch.equal(parts.item_call(item).pixels, image[None, None])


def test_split_nested_without_a_mask_gives_the_pixels_alone() -> None:
    call = nested(torch.randn(3, 8, 8), per_prompt=1, size=(8, 8))
    parts = split_nested(None, call | {"pixel_attention_mask": None})
    assert isinstance(parts, CallParts)
    assert parts.names == ("pixel_values",)


def test_split_nested_of_padding_alone_calls_the_stock_method() -> None:
    assert split_nested(None, nested(None, per_prompt=1, size=(8, 8))) is None


def test_split_nested_of_a_mask_of_another_size_calls_the_stock_method() -> None:
    call = nested(torch.randn(3, 8, 8), per_prompt=1, size=(8, 8))
    call["pixel_attention_mask"] = call["pixel_attention_mask"][..., :4]
    assert split_nested(None, call) is None


def test_split_nested_images_are_the_elements_within_their_bounds() -> None:
    call = nested(torch.randn(3, 8, 8), None, None, torch.randn(3, 8, 8), per_prompt=2, size=(8, 8))
    for split in (split_nested, split_nested_sizes):
        parts = split(None, call)
        assert isinstance(parts, CallParts)
        assert parts.bounds is not None
        assert len(parts.bounds) == 2
        for item, (first, last) in enumerate(parts.bounds):
            pixels = call["pixel_values"].flatten()[first:last].view(parts.shapes[item])
            assert torch.equal(parts.item_call(item).pixels, pixels)


def test_split_nested_keeps_the_padding_of_an_image() -> None:
    parts = split_nested(None, nested(torch.randn(3, 4, 6), per_prompt=1, size=(8, 8)))
    assert isinstance(parts, CallParts)
    assert parts.shapes == [(1, 1, 3, 8, 8)]


def test_split_nested_sizes_leaves_out_the_padding_by_a_larger_image() -> None:
    image = torch.randn(3, 4, 6)
    alone = split_nested_sizes(None, nested(image, per_prompt=1, size=(4, 6)))
    padded = split_nested_sizes(None, nested(torch.randn(3, 8, 8), image, per_prompt=2, size=(8, 8)))
    assert isinstance(alone, CallParts)
    assert isinstance(padded, CallParts)
    expected, found = alone.item_call(0).arguments, padded.item_call(1).arguments
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_split_nested_refuses_a_mask_of_another_number_of_images() -> None:
    call = nested(torch.randn(3, 8, 8), torch.randn(3, 8, 8), per_prompt=2, size=(8, 8))
    call["pixel_attention_mask"] = call["pixel_attention_mask"][:, :1]
    with pytest.raises(
        ValueError, match="pixel_attention_mask must have 2 images for this pixel_values, got 1"
    ):
        split_nested(None, call)


def tiles() -> dict:
    """Two prompts with one and with two tiles."""
    mask = torch.tensor([[True, False], [True, True]])
    return {"pixel_values": torch.randn(2, 2, 3, 8, 8), "pixel_attention_mask": mask, "tile_fine_mask": None}


def test_split_nested_tiles_has_one_group_per_prompt_and_no_item_for_padding() -> None:
    call = tiles()
    parts = split_nested_tiles(None, call)
    assert isinstance(parts, CallParts)
    assert parts.groups == [1, 2]
    for item, (prompt, tile) in enumerate([(0, 0), (1, 0), (1, 1)]):
        assert torch.equal(parts.item_call(item).pixels[0, 0], call["pixel_values"][prompt, tile])


def test_split_nested_tiles_gives_each_tile_the_route_of_its_prompt() -> None:
    parts = split_nested_tiles(None, tiles() | {"tile_fine_mask": torch.tensor([True, False])})
    assert isinstance(parts, CallParts)
    routes = [parts.item_call(item).arguments["tile_fine_mask"].tolist() for item in range(3)]
    assert routes == [[True], [False], [False]]


def test_split_nested_tiles_refuses_a_route_for_another_number_of_prompts() -> None:
    with pytest.raises(ValueError, match="tile_fine_mask must have 2 prompts for this pixel_values, got 1"):
        split_nested_tiles(None, tiles() | {"tile_fine_mask": torch.tensor([True])})
