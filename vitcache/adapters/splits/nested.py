"""Splits of calls with the images of each prompt: `(prompts, images, C, H, W)`, in the forms of Idefics."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, check_total, parts_of


def split_nested(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split `(prompts, images, C, H, W)` into images. Prompts with fewer images are padded with zeros.

    The stock method returns the rows of all images of a prompt as one element. An image is all of its pixels
    and, if given, its part of `pixel_attention_mask`, `(prompts, images, H, W)`.
    """
    return _split(arguments, crop=False)


def split_nested_sizes(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """As `split_nested`, for images of several sizes: their size is that of the mask's valid pixels.

    The processor pads all images of a call to the largest height and width. The padding depends on the other
    images, so it is not part of the item.
    """
    return _split(arguments, crop=True)


def split_nested_tiles(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split `(prompts, tiles, C, H, W)` by a mask `(prompts, tiles)`, which is false for padding.

    This is the form of Granite Docling. `tile_fine_mask`, if given, has one value per prompt.
    """
    (pixel_name, pixels), (mask_name, masks), (fine_name, fine) = islice(arguments.items(), 3)
    if pixels.dim() != 5 or not isinstance(masks, Tensor) or not masks.any():
        return None
    prompts, tiles = pixels.shape[:2]
    check_total(mask_name, masks.numel(), "tiles", pixel_name, prompts * tiles)
    if isinstance(fine, Tensor):
        check_total(fine_name, len(fine), "prompts", pixel_name, prompts)
    calls = []
    for prompt, tile in masks.nonzero().tolist():
        call = {
            pixel_name: pixels[prompt : prompt + 1, tile : tile + 1],
            mask_name: masks[prompt : prompt + 1, tile : tile + 1],
        }
        if isinstance(fine, Tensor):
            call[fine_name] = fine[prompt : prompt + 1]
        calls.append(call)
    return parts_of(calls, masks.sum(1).tolist())


def _split(arguments: dict[str, Any], *, crop: bool) -> CallParts | None:
    (pixel_name, pixels), (mask_name, masks) = islice(arguments.items(), 2)
    if pixels.dim() != 5:
        return None
    if isinstance(masks, Tensor):
        prompts, images = pixels.shape[:2]
        check_total(mask_name, masks.shape[:2].numel(), "images", pixel_name, prompts * images)
    is_image = pixels.flatten(2).any(-1)
    calls = []
    for prompt, image in is_image.nonzero().tolist():
        call = {pixel_name: pixels[prompt : prompt + 1, image : image + 1]}
        if isinstance(masks, Tensor):
            call[mask_name] = masks[prompt : prompt + 1, image : image + 1]
            if crop:
                height, width = _valid_size(call[mask_name])
                call = {name: value[..., :height, :width] for name, value in call.items()}
        calls.append(call)
    return parts_of(calls, is_image.sum(1).tolist()) if calls else None


def _valid_size(mask: Tensor) -> tuple[int, int]:
    """Height and width of the part of a mask that has all valid pixels."""
    valid = mask[0, 0].nonzero()
    if len(valid) == 0:
        return mask.shape[-2], mask.shape[-1]
    height, width = (valid.amax(0) + 1).tolist()
    return height, width
