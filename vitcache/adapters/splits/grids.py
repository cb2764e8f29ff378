"""`split_by_grid`: patches of all items, end to end, and a grid per item."""

from __future__ import annotations

from itertools import accumulate, islice, repeat
from math import prod
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, bounds_of, check_total
from vitcache.adapters.splits.companions import add_tensors


def split_by_grid(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split patches `(sum of t*h*w, ...)` of all items by the grid `(items, 3)` of t, h, w."""
    (pixel_name, pixels), (grid_name, grids) = islice(arguments.items(), 2)
    if not isinstance(grids, Tensor):
        return None
    identities = grids.tolist()
    counts = list(map(prod, identities))
    ends = list(accumulate(counts, initial=0))
    check_total(pixel_name, len(pixels), "patches", grid_name, ends[-1])

    def item_arguments(item: int) -> dict[str, Any]:
        return {pixel_name: pixels[ends[item] : ends[item + 1]], grid_name: grids[item : item + 1]}

    patch = tuple(pixels.shape[1:])
    shapes = list(zip(counts, *map(repeat, patch), strict=False))
    return CallParts(
        (pixel_name, grid_name), bounds_of(ends, prod(patch)), shapes, identities, item_arguments
    )


def split_by_grid_and_merge(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """`split_by_grid` of a call whose third argument is the merge size `(items,)` of each item."""
    parts = split_by_grid(config, arguments)
    name, sizes = next(islice(arguments.items(), 2, None))
    if parts is None or not isinstance(sizes, Tensor):
        return None
    return add_tensors(parts, {name: sizes})
