"""`split_by_stack`: each index of the first dimension is the frames of a video, or the tiles of an image."""

from __future__ import annotations

from math import prod
from typing import Any

from vitcache.adapters.splits.call_parts import CallParts, ItemCall, bounds_of


def split_by_stack(config: Any, arguments: dict[str, Any]) -> CallParts:
    """Split `(items, slices, C, H, W)` by the first dimension.

    The stock output has the rows of each frame or tile as an index of one stacked tensor.
    """
    pixel_name, pixels = next(iter(arguments.items()))
    count, *item_shape = pixels.shape
    slices = item_shape[0]

    def item_call(item: int) -> ItemCall:
        return ItemCall({pixel_name: pixels[item : item + 1]}, slices)

    return CallParts(
        (pixel_name,),
        bounds_of(range(count + 1), prod(item_shape)),
        [(1, *item_shape)] * count,
        None,
        item_call,
        slices=[slices] * count,
    )
