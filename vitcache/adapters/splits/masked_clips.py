"""Features of audio clips, padded to the longest clip of the call, with a mask, as in Gemma.

The padding behind a clip's last valid frame depends on the other clips, so it is not part of the item.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import check_total


def split_by_valid_frames(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split features `(clips, frames, values)` by a mask `(clips, frames)` that is true for valid frames."""
    return _split(arguments, valid=True)


def split_by_padding_mask(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """As `split_by_valid_frames`, with a mask that is true for padding, as in Gemma 3n."""
    return _split(arguments, valid=False)


def _split(arguments: dict[str, Any], *, valid: bool) -> list[dict[str, Any]] | None:
    (feature_name, features), (mask_name, masks) = islice(arguments.items(), 2)
    if not isinstance(masks, Tensor) or masks.dim() != 2:
        return None
    check_total(mask_name, len(masks), "clips", feature_name, len(features))
    check_total(mask_name, masks.shape[1], "frames", feature_name, features.shape[1])
    frames = [(mask.bool() == valid).nonzero() for mask in masks]
    ends = [int(clip[-1]) + 1 if len(clip) else features.shape[1] for clip in frames]
    return [
        {feature_name: features[clip : clip + 1, :end], mask_name: masks[clip : clip + 1, :end]}
        for clip, end in enumerate(ends)
    ]
