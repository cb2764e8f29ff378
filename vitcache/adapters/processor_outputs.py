"""Checks of the outputs of a model's processor, and of the keys of their items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache.adapters.families import GRID_FAMILIES, Family
from vitcache.keys.content import check_key


def read_grids(name: str, grids: Any, config: Any) -> list[list[int]]:
    """Return t, h and w of each item, after a check of each number."""
    if not isinstance(grids, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(grids).__name__}")
    if grids.is_floating_point() or grids.is_complex() or grids.dtype == torch.bool:
        raise TypeError(f"{name} must be a tensor of ints, got {grids.dtype}")
    if grids.dim() != 2 or grids.shape[1] != 3:
        raise ValueError(f"{name} must have shape (items, 3), got {tuple(grids.shape)}")
    merge = config.vision_config.spatial_merge_size
    found: list[list[int]] = grids.tolist()
    for item, grid in enumerate(found):
        if min(grid) < 1:
            raise ValueError(f"{name}[{item}] must have three numbers of at least 1, got {grid}")
        if grid[1] % merge or grid[2] % merge:
            raise ValueError(f"h and w of {name}[{item}] must be multiples of {merge}, got {grid}")
    return found


def split_features(name: str, pixels: Any, grid_name: str, grids: list[list[int]]) -> Sequence[Tensor]:
    """Return the patches of each item, views of `pixels`."""
    if not isinstance(pixels, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(pixels).__name__}")
    counts = list(map(math.prod, grids))
    if not pixels.dim() or len(pixels) != sum(counts):
        found = len(pixels) if pixels.dim() else "a number"
        raise ValueError(f"{name} must have {sum(counts)} patches for this {grid_name}, got {found}")
    parts: Sequence[Tensor] = pixels.split(counts)
    return parts


def check_keys(
    noun: str, keys: Sequence[bytes] | None, complete_keys: bool, count: int
) -> Sequence[bytes | None]:
    """Return the key of each item, or None, after a check of each key."""
    if not isinstance(complete_keys, bool):
        raise TypeError(f"complete_keys must be a bool, got {type(complete_keys).__name__}")
    if keys is None:
        if complete_keys:
            raise ValueError("complete_keys is True, but keys is None")
        return [None] * count
    if not isinstance(keys, Sequence) or isinstance(keys, str | bytes):
        raise TypeError(f"keys must be a sequence of keys, got {type(keys).__name__}")
    if len(keys) != count:
        raise ValueError(f"keys must have one key per {noun}: expected {count}, got {len(keys)}")
    for item, key in enumerate(keys):
        check_key(key, f"keys[{item}]")
    return keys


def can_be_read(tensor: Tensor) -> bool:
    """Whether a tensor has elements that `tolist` returns: it is dense, and not on the device "meta"."""
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def read_seconds(base: Any, family: Family, seconds: Any, count: int) -> list[float]:
    """Return the seconds per temporal patch of each video."""
    if not family.videos_have_seconds:
        timed = [name for name, each in GRID_FAMILIES.items() if each.videos_have_seconds]
        raise ValueError(
            f"second_per_grid_ts is for {', '.join(timed)}: the positions of {base.config.model_type} do not "
            "depend on it"
        )
    is_array = isinstance(seconds, np.ndarray) or (isinstance(seconds, Tensor) and can_be_read(seconds))
    values: Any = seconds.tolist() if is_array else seconds
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        found = type(seconds).__name__
        raise TypeError(f"second_per_grid_ts must be a sequence or a tensor of numbers, got {found}")
    if len(values) != count:
        raise ValueError(
            f"second_per_grid_ts must have one number per video: expected {count}, got {len(values)}"
        )
    for video, value in enumerate(values):
        name = f"second_per_grid_ts[{video}]"
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return [float(value) for value in values]
