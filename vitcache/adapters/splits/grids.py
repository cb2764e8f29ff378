"""`split_by_grid`: patches of all items, end to end, and a grid per item."""

from __future__ import annotations

from itertools import accumulate, islice
from math import prod
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, ItemCall, bounds_of, check_total


def split_by_grid(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split patches `(sum of t*h*w, ...)` of all items by the grid `(items, 3)` of t, h, w."""
    (pixel_name, pixels), (grid_name, grids) = islice(arguments.items(), 2)
    if not isinstance(grids, Tensor):
        return None
    identities = grids.tolist()
    counts = list(map(prod, identities))
    ends = list(accumulate(counts, initial=0))
    check_total(pixel_name, len(pixels), "patches", grid_name, ends[-1])

    def item_call(item: int) -> ItemCall:
        patches = pixels[ends[item] : ends[item + 1]]
        return ItemCall({pixel_name: patches, grid_name: grids[item : item + 1]})

    patch = tuple(pixels.shape[1:])
    shapes = [(count, *patch) for count in counts]
    return CallParts((pixel_name, grid_name), bounds_of(ends, prod(patch)), shapes, identities, item_call)
