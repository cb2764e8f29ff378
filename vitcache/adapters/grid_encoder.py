"""`GridEncoder`: runs a model's stock methods on items whose features are patches with a grid."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.model_outputs import image_rows
from vitcache.pipeline.items import Item

METHODS = {"grid_thw": "get_image_features", "video_grid_thw": "get_video_features"}
"""The stock method of an item, by the name of the grid in its `encoder_kwargs`."""


class GridEncoder:
    """Encodes images and videos, with one call of each stock method for all items of a modality.

    Parameters
    ----------
    base
        A base model of `GRID_FAMILIES`.
    """

    def __init__(self, base: Any) -> None:
        self._base = base
        self._patches_per_row = base.config.vision_config.spatial_merge_size**2

    @torch.no_grad()
    def __call__(self, features: list[Tensor], items: list[Item]) -> Tensor:
        """Return the rows of all items end to end, ``(n, row_width)``.

        Raises
        ------
        ValueError
            If an item does not have exactly one grid; if the `num_rows` of one of several items does not
            agree with its grid; or if the rows of several items cannot be told apart, because a stock method
            returned another number of rows than expected.
        """
        names = [_grid_name(position, item) for position, item in enumerate(items)]
        if len(items) > 1:
            self._check_rows(names, items)
        if len(set(names)) == 1:
            return self._encode(names[0], features, items)
        rows: dict[int, Tensor] = {}
        for name in METHODS:
            positions = [position for position, found in enumerate(names) if found == name]
            counts = [items[position].num_rows for position in positions]
            encoded = self._encode(name, [features[i] for i in positions], [items[i] for i in positions])
            if len(encoded) != sum(counts):
                method, total = METHODS[name], sum(counts)
                raise ValueError(f"{method} must return {total} rows for these items, got {len(encoded)}")
            rows.update(zip(positions, encoded.split(counts), strict=True))
        return torch.cat([rows[position] for position in range(len(items))])

    def _encode(self, name: str, features: list[Tensor], items: list[Item]) -> Tensor:
        pixels = features[0] if len(features) == 1 else torch.cat(features)
        grids = torch.tensor([item.encoder_kwargs[name] for item in items], device=pixels.device)
        return image_rows(getattr(self._base, METHODS[name])(pixels, grids, return_dict=True))

    def _check_rows(self, names: list[str], items: list[Item]) -> None:
        """Refuse an item that would get rows of the next one."""
        for position, (name, item) in enumerate(zip(names, items, strict=True)):
            grid = item.encoder_kwargs[name]
            expected = prod(grid) // self._patches_per_row
            if item.num_rows != expected:
                raise ValueError(
                    f"item {position} has {item.num_rows} rows, expected {expected}, as its {name} is {grid}"
                )


def _grid_name(position: int, item: Item) -> str:
    """Return the name of the item's grid."""
    found = grid_names(item)
    if len(found) != 1:
        raise ValueError(
            f"item {position} must have either grid_thw (an image) or video_grid_thw (a video), got "
            f"{' and '.join(found) or 'neither'}"
        )
    return found[0]


def grid_names(item: Item) -> list[str]:
    """Return the names of the grids that an item has. A valid item has one."""
    return [name for name in METHODS if item.encoder_kwargs.get(name) is not None]
