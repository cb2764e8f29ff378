"""`split_by_frame_mask`: the frames of audio clips, padded to the longest clip of the call, and a mask."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.splits.call_parts import check_total


def split_by_frame_mask(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split features `(clips, mel, T)` by a mask `(clips, T)`: each clip is cropped to its valid frames.

    The padding depends on the other clips, so it is not part of the item. With a mask, the stock method does
    not read a third argument: the lengths.
    """
    (feature_name, features), (mask_name, mask), *rest = islice(arguments.items(), 3)
    if not isinstance(mask, Tensor):
        return None
    check_total(mask_name, len(mask), "clips", feature_name, len(features))
    lengths = {name: None for name, _ in rest if name == "audio_feature_lengths"}
    calls = []
    for clip, valid in zip(features, mask.bool(), strict=True):
        frames = clip[:, valid.to(clip.device)]
        ones = torch.ones(1, frames.shape[1], dtype=mask.dtype)
        calls.append({feature_name: frames[None], mask_name: ones, **lengths})
    return calls
