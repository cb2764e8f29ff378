"""Splits of calls with the images of each prompt: `(prompts, images, C, H, W)`, in the forms of Idefics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from math import prod
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, check_total
from vitcache.adapters.splits.companions import identities_of
from vitcache.adapters.splits.extents import Extent, find_extents
from vitcache.adapters.splits.padding_images import find_images
from vitcache.keys.parts import part_digests


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
    if masks.shape != (prompts, tiles):
        return None
    places = [(prompt, tile) for prompt, tile in masks.nonzero().tolist()]
    of_tiles = identities_of(mask_name, masks.reshape(-1))
    identities = [of_tiles[prompt * tiles + tile] for prompt, tile in places]
    per_prompt = {fine_name: fine} if isinstance(fine, Tensor) else {}
    for name, values in per_prompt.items():
        check_total(name, len(values), "prompts", pixel_name, prompts)
        of_prompts = identities_of(name, values)
        identities = [
            (*known, *of_prompts[prompt]) for known, (prompt, _) in zip(identities, places, strict=True)
        ]

    def item_arguments(item: int) -> dict[str, Any]:
        place = places[item]
        own = {name: values[place[0] : place[0] + 1] for name, values in per_prompt.items()}
        return {pixel_name: _at(pixels, place), mask_name: _at(masks, place), **own}

    names = pixel_name, mask_name, *per_prompt
    return _nested(names, pixels, places, identities, item_arguments)


def _split(arguments: dict[str, Any], *, crop: bool) -> CallParts | None:
    (pixel_name, pixels), (mask_name, masks) = islice(arguments.items(), 2)
    if pixels.dim() != 5 or pixels.numel() == 0:
        return None
    prompts, images, channels, *sizes = pixels.shape
    has_mask = isinstance(masks, Tensor)
    if has_mask:
        check_total(mask_name, masks.shape[:2].numel(), "images", pixel_name, prompts * images)
        if masks.shape != (prompts, images, *sizes):
            return None
    places = find_images(pixels)
    if not places:
        return None
    if not has_mask:
        return _nested(
            (pixel_name,), pixels, places, None, lambda item: {pixel_name: _at(pixels, places[item])}
        )

    all_extents = find_extents(masks)
    extents = [all_extents[prompt * images + image] for prompt, image in places]

    own_sizes = [list(extent[:2]) if crop else sizes for extent in extents]
    regions = [
        (*map(_one, place), ..., slice(height), slice(width))
        for place, (height, width) in zip(places, own_sizes, strict=True)
    ]

    def item_arguments(item: int) -> dict[str, Any]:
        return {pixel_name: pixels[regions[item]], mask_name: masks[regions[item]]}

    head = mask_name, str(masks.dtype)
    identities = [
        (head, *_mask_identity(masks[place], extent)) for place, extent in zip(places, extents, strict=True)
    ]
    parts = _nested((pixel_name, mask_name), pixels, places, identities, item_arguments)
    if all(size == sizes for size in own_sizes):
        return parts
    shapes: list[tuple[int, ...]] = [(1, 1, channels, *size) for size in own_sizes]
    return parts._replace(bounds=None, shapes=shapes, regions=regions)


def _mask_identity(mask: Tensor, extent: Extent) -> tuple[Any, ...]:
    """Return values that determine a mask of a known shape and dtype."""
    height, width, is_full = extent
    if is_full:
        return height, width
    inside = mask[:height, :width].contiguous().cpu()
    return height, width, *part_digests(inside, [(0, inside.numel())])


def _nested(
    names: tuple[str, ...],
    pixels: Tensor,
    places: list[tuple[int, int]],
    identities: list[Any] | None,
    item_arguments: Callable[[int], dict[str, Any]],
) -> CallParts:
    """Return the parts of a call with whole images at these places, the prompt and the index of each."""
    prompts, images, *image = pixels.shape
    size = prod(image)
    numbers = [prompt * images + index for prompt, index in places]
    images_of = Counter(prompt for prompt, _ in places)
    return CallParts(
        names,
        [(number * size, (number + 1) * size) for number in numbers],
        [(1, 1, *image)] * len(places),
        identities,
        item_arguments,
        [images_of[prompt] for prompt in range(prompts)],
    )


def _at(values: Tensor, place: tuple[int, int]) -> Tensor:
    """Return one image or mask with both outer dimensions."""
    return values[tuple(map(_one, place))]


def _one(index: int) -> slice:
    return slice(index, index + 1)
