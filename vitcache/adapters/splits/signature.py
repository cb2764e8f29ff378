"""`split_for_signature`: a split for a stock method of a model that is not known by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import accumulate, pairwise
from math import prod
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, Split, check_total, parts_of

_PIXELS = ("pixel_values", "input_features", "input_values", "high_res_pixel_values")


class UnknownForm(TypeError):
    """A call, or a signature, whose items cannot be told apart."""


def split_for_signature(method: Callable[..., Any]) -> Split:
    """Return a split for a stock method, chosen by the names of its arguments.

    The first argument has the pixels of all items. If an argument is a grid `*_grid_thw`, the items are
    patches, end to end; else each index of the first dimension is an item. Any other tensor of a call must
    have one index per item.

    Raises
    ------
    UnknownForm
        If the method has no first argument, or several arguments with pixels.
    """
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    names = [each.name for each in inspect.signature(method).parameters.values() if each.kind in kinds]
    if not names:
        raise UnknownForm("its signature names no argument with pixels")
    pixels = [name for name in names if name.startswith(_PIXELS) and not name.endswith("_mask")]
    if len(pixels) > 1:
        raise UnknownForm(f"the pixels of an item are in several arguments: {', '.join(pixels)}")
    grid = next((name for name in names[1:] if name.endswith("_grid_thw")), None)

    def split(config: Any, arguments: dict[str, Any]) -> CallParts | None:
        return _by_grid(grid, arguments) if grid else _by_index(arguments)

    return split


def _by_grid(grid_name: str, arguments: dict[str, Any]) -> CallParts | None:
    pixel_name, pixels = next(iter(arguments.items()))
    grids = arguments[grid_name]
    if not isinstance(grids, Tensor):
        return None
    counts = list(map(prod, grids.tolist()))
    ends = list(accumulate(counts, initial=0))
    check_total(pixel_name, len(pixels), "patches", grid_name, ends[-1])
    patches = [pixels[first:last] for first, last in pairwise(ends)]
    return _with_others(pixel_name, patches, arguments)


def _by_index(arguments: dict[str, Any]) -> CallParts:
    pixel_name, pixels = next(iter(arguments.items()))
    return _with_others(pixel_name, list(pixels.split(1)), arguments)


def _with_others(pixel_name: str, pixels: list[Tensor], arguments: dict[str, Any]) -> CallParts:
    """Return the parts of a call: the pixels of each item, and its index of every other tensor."""
    others = {
        name: value for name, value in arguments.items() if isinstance(value, Tensor) and name != pixel_name
    }
    for name, value in others.items():
        found = len(value) if value.dim() else "a number"
        if found != len(pixels):
            raise UnknownForm(
                f"{name} must have one index for each of the {len(pixels)} items of {pixel_name}, got {found}"
            )
    calls = [
        {pixel_name: part, **{name: value[item : item + 1] for name, value in others.items()}}
        for item, part in enumerate(pixels)
    ]
    return parts_of(calls)
