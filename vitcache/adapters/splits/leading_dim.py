"""Splits by the first dimension: item i is index i of the pixels, and of other tensors of the call."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, Split, bounds_of
from vitcache.adapters.splits.companions import add_tensors

# An older name of the pixels in Video-LLaVA. If a call has it, even as None, the stock method warns.
_OLD_NAME = "pixel_values_images"


def split_by_leading_dim(config: Any, arguments: dict[str, Any]) -> CallParts:
    """Split by the first dimension: each index is one image, tile or video."""
    pixel_name, pixels = next(iter(arguments.items()))
    count, *image = pixels.shape
    bounds = bounds_of(range(count + 1), prod(image))
    names = (pixel_name, _OLD_NAME) if _OLD_NAME in arguments else (pixel_name,)
    return CallParts(
        names, bounds, [(1, *image)] * count, None, lambda item: {pixel_name: pixels[item : item + 1]}
    )


def split_by_stack(config: Any, arguments: dict[str, Any]) -> CallParts:
    """Split `(items, slices, C, H, W)`: each index is the frames of a video, or the tiles of an image.

    The stock output has the rows of each frame or tile as an index of one stacked tensor.
    """
    pixels = next(iter(arguments.values()))
    return split_by_leading_dim(config, arguments)._replace(slices=pixels.shape[1])


def split_by_index(*names: str) -> Split:
    """Return a split for calls in which item i is index i of the pixels and of the tensors `names`.

    Gemma 4 has such calls: `pixel_values` is `(images, patches, values)`, and `image_position_ids` is
    `(images, patches, 2)`. The processors pad all images to one number of patches, which other images do not
    change. So the padding is part of an item. An argument that is None is not.
    """

    def split(config: Any, arguments: dict[str, Any]) -> CallParts:
        tensors = {name: value for name in names if isinstance(value := arguments.get(name), Tensor)}
        return add_tensors(split_by_leading_dim(config, arguments), tensors)

    return split
