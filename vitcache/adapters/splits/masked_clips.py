"""`split_by_valid_frames`: features of audio clips, padded to the longest clip, with a mask, as in Gemma 4."""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import check_total


def split_by_valid_frames(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split features `(clips, frames, values)` by a mask `(clips, frames)` of the valid frames.

    The padding behind a clip's last valid frame depends on the other clips, so it is not part of the item.
    """
    (feature_name, features), (mask_name, masks) = islice(arguments.items(), 2)
    if not isinstance(masks, Tensor) or masks.dim() != 2:
        return None
    check_total(mask_name, len(masks), "clips", feature_name, len(features))
    check_total(mask_name, masks.shape[1], "frames", feature_name, features.shape[1])
    valid = [mask.nonzero() for mask in masks]
    ends = [int(frames[-1]) + 1 if len(frames) else features.shape[1] for frames in valid]
    return [
        {feature_name: features[clip : clip + 1, :end], mask_name: masks[clip : clip + 1, :end]}
        for clip, end in enumerate(ends)
    ]
