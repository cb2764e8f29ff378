"""`split_by_image_size`: the tiles of each image, in the forms of LLaVA-NeXT and LLaVA-OneVision."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, islice
from math import prod
from typing import Any

import torch

from vitcache.adapters.splits.call_parts import CallParts, check_total

_GROUPS = "batch_num_images"


def split_by_image_size(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split by the tiles per image: `image_sizes` gives their number.

    If `batch_num_images` is given, each image of a prompt with several images has one tile. `pixel_values` is
    `(images, tiles, C, H, W)`, padded to the largest number of tiles, or the tiles of all images, end to end.
    The padding depends on the other images, so it is not part of the item.
    """
    (pixel_name, pixels), (size_name, sizes) = islice(arguments.items(), 2)
    identities = torch.as_tensor(sizes, device="cpu").tolist()
    has_groups = _GROUPS in arguments
    groups = arguments[_GROUPS] if has_groups else None
    groups = [1] * len(identities) if groups is None else torch.as_tensor(groups, device="cpu").tolist()
    check_total(size_name, len(identities), "sizes", _GROUPS, sum(groups))
    images_in_prompt = [images for images in groups for _ in range(images)]
    num_tiles = _tile_counter(tuple(map(tuple, config.image_grid_pinpoints)), config.vision_config.image_size)
    counts = [
        num_tiles(*size) if images == 1 else 1
        for size, images in zip(identities, images_in_prompt, strict=True)
    ]
    if is_padded := pixels.dim() == 5:
        check_total(pixel_name, len(pixels), "images", size_name, len(identities))
        most, tile = pixels.shape[1], tuple(pixels.shape[2:])
        counts = [min(count, most) for count in counts]
        starts = list(range(0, len(counts) * most, most))
        shapes = [(1, count, *tile) for count in counts]
    else:
        tile = tuple(pixels.shape[1:])
        *starts, end = accumulate(counts, initial=0)
        check_total(pixel_name, len(pixels), "tiles", size_name, end)
        shapes = [(count, *tile) for count in counts]

    def item_arguments(item: int) -> dict[str, Any]:
        start, count = starts[item], counts[item]
        tiles = pixels[item : item + 1, :count] if is_padded else pixels[start : start + count]
        # Lists, because the stock method reads these numbers on the host: it would wait for a CUDA tensor.
        options = {_GROUPS: [images_in_prompt[item]]} if has_groups else {}
        return {pixel_name: tiles, size_name: [identities[item]], **options}

    size = prod(tile)
    bounds = [(start * size, (start + count) * size) for start, count in zip(starts, counts, strict=True)]
    names = (pixel_name, size_name, *([_GROUPS] if has_groups else []))
    return CallParts(names, bounds, shapes, identities, item_arguments)


@lru_cache(maxsize=16)
def _tile_counter(pinpoints: tuple[tuple[int, ...], ...], tile_size: int) -> Callable[[int, int], int]:
    """Return a function that gives the number of tiles of an image of this height and width."""
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    grids = list(map(list, pinpoints))

    @lru_cache(maxsize=4096)
    def num_tiles(height: int, width: int) -> int:
        return int(image_size_to_num_patches([height, width], grids, tile_size))

    return num_tiles
