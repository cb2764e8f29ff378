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


def split_by_grid_and_merge(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """`split_by_grid` of a call whose third argument is the merge size `(items,)` of each item."""
    parts = split_by_grid(config, arguments)
    name, sizes = next(islice(arguments.items(), 2, None))
    if parts is None or not isinstance(sizes, Tensor):
        return None
    check_total(name, len(sizes), "sizes", parts.names[1], len(parts.shapes))
    identities = [[*grid, size] for grid, size in zip(parts.identities or (), sizes.tolist(), strict=True)]

    def item_call(item: int) -> ItemCall:
        arguments = parts.item_call(item).arguments
        return ItemCall(arguments | {name: sizes[item : item + 1]})

    return parts._replace(names=(*parts.names, name), identities=identities, item_call=item_call)
