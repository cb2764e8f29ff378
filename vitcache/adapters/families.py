"""How the call of a model family is split into items: the arguments that encode one image or video."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemCall:
    """The call for one item: with `arguments` the stock method encodes this item alone.

    The first argument is the item's pixels, a view of the call's pixels.
    """

    arguments: dict[str, Any]

    @property
    def pixels(self) -> Tensor:
        pixels: Tensor = next(iter(self.arguments.values()))
        return pixels


class CallParts(NamedTuple):
    """How the pixels of a call are divided into items. It has no object per item: most items are hits.

    Attributes
    ----------
    names
        The arguments of the call that `item_call` replaces by those of one item. The pixels are the first.
    bounds
        Per item, the numbers of its first element and of the element after its last. Elements are counted in
        the call's pixels in C order.
    shapes
        Shape of the pixels of each item.
    identities
        Per item, the numbers other than the pixels that its key depends on. None: no item has such numbers.
    item_call
        Returns the `ItemCall` of an item, given its number.
    """

    names: tuple[str, ...]
    bounds: list[tuple[int, int]]
    shapes: list[tuple[int, ...]]
    identities: list[list[int]] | None
    item_call: Callable[[int], ItemCall]


Split = Callable[[Any, dict[str, Any]], CallParts | None]
"""(config, arguments in the order of the stock signature) -> items; None: call the stock method instead."""


def split_by_grid(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split patches `(sum of t*h*w, width)` of all items by the grid `(items, 3)` of t, h, w."""
    (pixel_name, pixels), (grid_name, grids) = islice(arguments.items(), 2)
    if not isinstance(grids, Tensor):
        return None
    identities = grids.tolist()
    counts = list(map(prod, identities))
    ends = list(accumulate(counts, initial=0))
    _check_total(pixel_name, len(pixels), "patches", grid_name, ends[-1])

    def item_call(item: int) -> ItemCall:
        patches = pixels[ends[item] : ends[item + 1]]
        return ItemCall({pixel_name: patches, grid_name: grids[item : item + 1]})

    patch = tuple(pixels.shape[1:])
    shapes = [(count, *patch) for count in counts]
    return CallParts((pixel_name, grid_name), _bounds(ends, prod(patch)), shapes, identities, item_call)


def split_by_leading_dim(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split by the first dimension: each index is one image, tile or video."""
    pixel_name, pixels = next(iter(arguments.items()))

    def item_call(item: int) -> ItemCall:
        return ItemCall({pixel_name: pixels[item : item + 1]})

    count, *image = pixels.shape
    bounds = _bounds(range(count + 1), prod(image))
    return CallParts((pixel_name,), bounds, [(1, *image)] * count, None, item_call)


def split_by_image_size(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split by the tiles per image: `image_sizes` gives their number, but it is 1 among several images.

    `pixel_values` is `(images, tiles, C, H, W)`, padded to the largest number of tiles, or the tiles of all
    images, end to end. The padding depends on the other images, so it is not part of the item.
    """
    (pixel_name, pixels), (size_name, sizes) = islice(arguments.items(), 2)
    identities = torch.as_tensor(sizes, device="cpu").tolist()
    groups = arguments["batch_num_images"]
    groups = [1] * len(identities) if groups is None else torch.as_tensor(groups, device="cpu").tolist()
    _check_total(size_name, len(identities), "sizes", "batch_num_images", sum(groups))
    images_in_prompt = [images for images in groups for _ in range(images)]
    num_tiles = _tile_counter(tuple(map(tuple, config.image_grid_pinpoints)), config.vision_config.image_size)
    counts = [
        num_tiles(*size) if images == 1 else 1
        for size, images in zip(identities, images_in_prompt, strict=True)
    ]
    if is_padded := pixels.dim() == 5:
        _check_total(pixel_name, len(pixels), "images", size_name, len(identities))
        most, tile = pixels.shape[1], tuple(pixels.shape[2:])
        counts = [min(count, most) for count in counts]
        starts = list(range(0, len(counts) * most, most))
        shapes = [(1, count, *tile) for count in counts]
    else:
        tile = tuple(pixels.shape[1:])
        *starts, end = accumulate(counts, initial=0)
        _check_total(pixel_name, len(pixels), "tiles", size_name, end)
        shapes = [(count, *tile) for count in counts]

    def item_call(item: int) -> ItemCall:
        start, count = starts[item], counts[item]
        tiles = pixels[item : item + 1, :count] if is_padded else pixels[start : start + count]
        # Lists, because the stock method reads these numbers on the host: it would wait for a CUDA tensor.
        options = {size_name: [identities[item]], "batch_num_images": [images_in_prompt[item]]}
        return ItemCall({pixel_name: tiles, **options})

    size = prod(tile)
    bounds = [(start * size, (start + count) * size) for start, count in zip(starts, counts, strict=True)]
    names = (pixel_name, size_name, "batch_num_images")
    return CallParts(names, bounds, shapes, identities, item_call)


@lru_cache(maxsize=16)
def _tile_counter(pinpoints: tuple[tuple[int, ...], ...], tile_size: int) -> Callable[[int, int], int]:
    """Return a function that gives the number of tiles of an image of this height and width."""
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    grids = list(map(list, pinpoints))

    @lru_cache(maxsize=4096)
    def num_tiles(height: int, width: int) -> int:
        return int(image_size_to_num_patches([height, width], grids, tile_size))

    return num_tiles


def _bounds(ends: Iterable[int], size: int) -> list[tuple[int, int]]:
    """Return the bounds of consecutive parts, from their ends in units of `size` elements."""
    return list(pairwise([end * size for end in ends]))


def _check_total(name: str, found: int, unit: str, reference: str, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{name} must have {expected} {unit} for this {reference}, got {found}")


@dataclass(frozen=True)
class Family:
    """The properties in which model families differ.

    Attributes
    ----------
    tower
        The name of the vision tower's attribute in the base model.
    splits
        A `Split` per modality.
    videos_have_image_tokens
        The tokens of videos have `config.image_token_id`, too; `config.video_start_token_id` and
        `config.video_end_token_id` surround each video.
    videos_are_frames
        Each frame of a video is a run of tokens of its own, between other tokens such as its time.
    videos_have_seconds
        The positions of a video's tokens depend on `second_per_grid_ts`.
    """

    tower: str
    splits: dict[str, Split]
    videos_have_image_tokens: bool = False
    videos_are_frames: bool = False
    videos_have_seconds: bool = False


_GRIDS = Family("visual", {"image": split_by_grid, "video": split_by_grid})
_FRAMES = replace(_GRIDS, videos_are_frames=True)

GRID_FAMILIES = {
    "qwen2_vl": _GRIDS,
    "qwen2_5_vl": replace(_GRIDS, videos_have_seconds=True),
    "qwen3_vl": _FRAMES,
    "qwen3_vl_moe": _FRAMES,
    "qwen3_5": _FRAMES,
    "qwen3_5_moe": _FRAMES,
    "glm4v": replace(_FRAMES, videos_have_image_tokens=True),
}
"""The families whose images and videos are patches with a grid, by `config.model_type`."""

FAMILIES = GRID_FAMILIES | {
    "llava_onevision": Family("vision_tower", {"image": split_by_image_size, "video": split_by_leading_dim}),
    "internvl": Family("vision_tower", {"image": split_by_leading_dim}),
    "gemma3": Family("vision_tower", {"image": split_by_leading_dim}),
}
"""All families, by `config.model_type`."""
