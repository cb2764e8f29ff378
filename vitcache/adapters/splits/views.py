"""`split_views`: a global view of each image, and the local tiles of all images, as in DeepSeek-OCR 2."""

from __future__ import annotations

from itertools import accumulate, islice, pairwise
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import check_total


def split_views(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split views `(images, C, H, W)`, and tiles `(tiles, C, h, w)` by the number of tiles per image.

    An image without tiles has None in place of tiles and of their number, as if it were alone in a call.
    `patches_grid`, if the model has it, has one grid of tiles per image.
    """
    (view_name, views), (tile_name, tiles), (count_name, counts) = islice(arguments.items(), 3)
    counts = counts.tolist() if isinstance(counts, Tensor) else counts
    if tiles is None:
        counts = [0] * len(views)
    elif counts is None:
        return None
    check_total(count_name, len(counts), "numbers", view_name, len(views))
    ends = list(accumulate(counts, initial=0))
    check_total(tile_name, 0 if tiles is None else len(tiles), "tiles", count_name, ends[-1])
    per_image = {name: value for name in ("patches_grid",) if (value := arguments.get(name)) is not None}
    for name, grids in per_image.items():
        check_total(name, len(grids), "grids", view_name, len(views))
    return [
        {
            view_name: views[image : image + 1],
            tile_name: tiles[start:end] if end > start else None,
            count_name: [end - start] if end > start else None,
            **{name: grids[image : image + 1] for name, grids in per_image.items()},
        }
        for image, (start, end) in enumerate(pairwise(ends))
    ]
