"""`split_by_leading_dim`: each index of the first dimension is one item."""

from __future__ import annotations

from math import prod
from typing import Any

from vitcache.adapters.splits.call_parts import CallParts, ItemCall, bounds_of

# An older name of the pixels in Video-LLaVA. If a call has it, even as None, the stock method warns.
_OLD_NAME = "pixel_values_images"


def split_by_leading_dim(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split by the first dimension: each index is one image, tile or video."""
    pixel_name, pixels = next(iter(arguments.items()))

    def item_call(item: int) -> ItemCall:
        return ItemCall({pixel_name: pixels[item : item + 1]})

    count, *image = pixels.shape
    bounds = bounds_of(range(count + 1), prod(image))
    names = (pixel_name, _OLD_NAME) if _OLD_NAME in arguments else (pixel_name,)
    return CallParts(names, bounds, [(1, *image)] * count, None, item_call)
