"""How the call of a model family is split into items: the arguments that encode one image or video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemCall:
    """One item of a call.

    With `arguments` the stock method encodes this item alone. The first argument is the item's pixels, a view
    of the call's pixels. `identity` contains the other arguments that the key depends on, as plain numbers.
    """

    arguments: dict[str, Any]
    identity: Any = None

    @property
    def pixels(self) -> Tensor:
        pixels: Tensor = next(iter(self.arguments.values()))
        return pixels


Split = Callable[[Any, dict[str, Any]], list[ItemCall] | None]
"""(config, arguments in the order of the stock signature) -> items; None: call the stock method instead."""


def split_by_grid(config: Any, arguments: dict[str, Any]) -> list[ItemCall] | None:
    """Split patches `(sum of t*h*w, width)` of all items by the grid `(items, 3)` of t, h, w."""
    (pixel_name, pixels), (grid_name, grids) = list(arguments.items())[:2]
    if not isinstance(grids, Tensor):
        return None
    shapes = grids.tolist()
    counts = [prod(shape) for shape in shapes]
    _check_total(pixel_name, len(pixels), "patches", grid_name, sum(counts))
    return [
        ItemCall({pixel_name: patches, grid_name: grids[i : i + 1]}, shapes[i])
        for i, patches in enumerate(pixels.split(counts))
    ]


def split_by_leading_dim(config: Any, arguments: dict[str, Any]) -> list[ItemCall] | None:
    """Split by the first dimension: each index is one image, tile or video."""
    pixel_name, pixels = next(iter(arguments.items()))
    return [ItemCall({pixel_name: item}) for item in pixels.split(1)]


def split_by_image_size(config: Any, arguments: dict[str, Any]) -> list[ItemCall] | None:
    """Split by the tiles per image: `image_sizes` gives their number, but it is 1 among several images.

    `pixel_values` is `(images, tiles, C, H, W)`, padded to the largest number of tiles, or the tiles of all
    images, end to end. The padding depends on the other images, so it is not part of the item.
    """
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    (pixel_name, pixels), (size_name, sizes) = list(arguments.items())[:2]
    shapes = torch.as_tensor(sizes, device="cpu").tolist()
    groups = arguments["batch_num_images"]
    groups = [1] * len(shapes) if groups is None else torch.as_tensor(groups, device="cpu").tolist()
    _check_total(size_name, len(shapes), "sizes", "batch_num_images", sum(groups))
    images_in_prompt = [images for images in groups for _ in range(images)]
    pinpoints, tile_size = config.image_grid_pinpoints, config.vision_config.image_size
    tiles = [
        image_size_to_num_patches(shape, pinpoints, tile_size) if images == 1 else 1
        for shape, images in zip(shapes, images_in_prompt, strict=True)
    ]
    if pixels.dim() == 5:
        _check_total(pixel_name, len(pixels), "images", size_name, len(shapes))
        parts = [pixels[i : i + 1, :count] for i, count in enumerate(tiles)]
    else:
        _check_total(pixel_name, len(pixels), "tiles", size_name, sum(tiles))
        parts = list(pixels.split(tiles))
    # Lists, because the stock method reads these numbers on the host: it would wait for a CUDA tensor.
    return [
        ItemCall({pixel_name: part, size_name: [shape], "batch_num_images": [images]}, shape)
        for part, shape, images in zip(parts, shapes, images_in_prompt, strict=True)
    ]


def _check_total(name: str, found: int, unit: str, reference: str, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{name} must have {expected} {unit} for this {reference}, got {found}")


@dataclass(frozen=True)
class Family:
    """The name of the vision tower's attribute in a family's base model, and a `Split` per modality."""

    tower: str
    splits: dict[str, Split]


FAMILIES = {
    "qwen2_5_vl": Family("visual", {"image": split_by_grid, "video": split_by_grid}),
    "qwen3_vl": Family("visual", {"image": split_by_grid, "video": split_by_grid}),
    "llava_onevision": Family("vision_tower", {"image": split_by_image_size, "video": split_by_leading_dim}),
    "internvl": Family("vision_tower", {"image": split_by_leading_dim}),
    "gemma3": Family("vision_tower", {"image": split_by_leading_dim}),
}
"""By `config.model_type`."""
