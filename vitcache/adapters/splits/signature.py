"""`split_for_signature`: a split for a stock method of a model that is not known by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, Split
from vitcache.adapters.splits.companions import add_tensors
from vitcache.adapters.splits.grids import split_by_grid
from vitcache.adapters.splits.leading_dim import split_by_leading_dim

_LAYERS = "vision_feature_"  # options such as a list of the tower's layers, which all items share
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
        pixel_name = next(iter(arguments))
        call = {name: arguments[name] for name in (pixel_name, grid) if name is not None}
        parts = split_by_grid(config, call) if grid else split_by_leading_dim(config, call)
        if parts is None:
            return None
        tensors = {
            name: value
            for name, value in arguments.items()
            if isinstance(value, Tensor) and name not in parts.names
        }
        for name, value in arguments.items():
            is_plain = not isinstance(value, list | tuple) or name.startswith(_LAYERS)
            if not is_plain and len(value) == len(parts.shapes):
                raise UnknownForm(
                    f"{name} is a {type(value).__name__} with one value for each of the {len(parts.shapes)} "
                    f"items of {pixel_name}: pass a split of your own, or a tensor"
                )
        for name, value in tensors.items():
            found = len(value) if value.dim() else "a number"
            if found != len(parts.shapes):
                raise UnknownForm(
                    f"{name} must have one index for each of the {len(parts.shapes)} items of {pixel_name}, "
                    f"got {found}"
                )
        return add_tensors(parts, tensors)

    return split
