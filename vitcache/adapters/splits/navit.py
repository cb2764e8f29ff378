"""`split_navit`: the patches of all images side by side, with a size per image, as in MiniCPM-V."""

from __future__ import annotations

from itertools import accumulate, islice, pairwise
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, check_total
from vitcache.adapters.splits.companions import add_tensors


def split_navit(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split `(1, C, patch size, sum of h*w * patch size)` by the sizes `(items, 2)` in patches: h, w.

    An item is an image, a slice of an image or a frame of a video: the call does not contain the number of
    frames per video.
    """
    (pixel_name, pixels), (size_name, sizes) = islice(arguments.items(), 2)
    if not isinstance(sizes, Tensor) or pixels.dim() != 4 or len(pixels) != 1:
        return None
    *rest, patch, columns = pixels.shape
    ends = list(accumulate((patch * height * width for height, width in sizes.tolist()), initial=0))
    check_total(pixel_name, columns, "columns", size_name, ends[-1])
    regions = [(..., slice(start, end)) for start, end in pairwise(ends)]
    parts = CallParts(
        (pixel_name,),
        bounds=None,
        shapes=[(*rest, patch, end - start) for start, end in pairwise(ends)],
        identities=None,
        arguments=lambda item: {pixel_name: pixels[regions[item]]},
        regions=regions,
    )
    return add_tensors(parts, {size_name: sizes})
