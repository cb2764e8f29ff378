"""`split_navit`: the patches of all images side by side, with a size per image, as in MiniCPM-V."""

from __future__ import annotations

from itertools import accumulate, islice, pairwise
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import check_total


def split_navit(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split `(1, C, patch size, sum of h*w * patch size)` by the sizes `(items, 2)` in patches: h, w.

    An item is an image, a slice of an image or a frame of a video: the call does not contain the number of
    frames per video.
    """
    (pixel_name, pixels), (size_name, sizes) = islice(arguments.items(), 2)
    if not isinstance(sizes, Tensor) or pixels.dim() != 4 or len(pixels) != 1:
        return None
    patch = pixels.shape[2]
    ends = list(accumulate((patch * height * width for height, width in sizes.tolist()), initial=0))
    check_total(pixel_name, pixels.shape[3], "columns", size_name, ends[-1])
    return [
        {pixel_name: pixels[..., start:end], size_name: sizes[item : item + 1]}
        for item, (start, end) in enumerate(pairwise(ends))
    ]
