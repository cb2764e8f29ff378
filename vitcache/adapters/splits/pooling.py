"""`split_by_pooling`: crops of all images or frames, and the patches that each token pools, as in Molmo 2."""

from __future__ import annotations

from itertools import islice, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.splits.call_parts import check_total


def split_by_pooling(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split crops `(crops, patches, values)` by the tokens of each image or video.

    The second argument is `(tokens, patches per token)`: the numbers of the patches of all crops that a token
    pools, or -1. The third argument is `(items, 4)`: rows and columns of the tokens of an image's overview,
    then of its crops; or `(items, 3)`: frames, rows and columns of a video. The call does not contain the
    number of crops per item, so an item's crops begin with the first patch that its tokens pool. An item's
    own patches begin with 0.
    """
    (pixel_name, crops), (pool_name, pooled), (grid_name, grids) = islice(arguments.items(), 3)
    if crops.dim() != 3 or not isinstance(pooled, Tensor) or not isinstance(grids, Tensor):
        return None
    counts = [prod(grid) if len(grid) == 3 else prod(grid[:2]) + prod(grid[2:]) for grid in grids.tolist()]
    check_total(pool_name, len(pooled), "tokens", grid_name, sum(counts))
    patches = crops.shape[1]
    tokens = pooled.split(counts)
    starts = [_first_patch(part) // patches for part in tokens]
    bounds = list(pairwise([*starts, len(crops)]))
    if starts[:1] != [0] or any(
        start >= end or int(part.max()) >= end * patches
        for part, (start, end) in zip(tokens, bounds, strict=True)
    ):
        return None  # the crops of the items are in another order, or items share crops
    return [
        {
            pixel_name: crops[start:end],
            pool_name: torch.where(part >= 0, part - start * patches, part),
            grid_name: grids[item : item + 1],
        }
        for item, (part, (start, end)) in enumerate(zip(tokens, bounds, strict=True))
    ]


def _first_patch(pooled: Tensor) -> int:
    pooled = pooled[pooled >= 0]
    return int(pooled.min()) if len(pooled) else 0
