"""`split_by_frames`: the frames of all videos, end to end, with positions, and the frames per video."""

from __future__ import annotations

from itertools import accumulate, islice
from math import prod
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, bounds_of, check_total
from vitcache.adapters.splits.companions import add_tensors, identities_of
from vitcache.adapters.splits.leading_dim import split_by_leading_dim


def split_by_frames(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split frames `(sum of frames, patches, values)` of all videos by `num_frames_per_video`, as in Gemma 4.

    In transformers 5.17 the frames are `(videos, frames, patches, values)`, without that argument.
    """
    (frame_name, frames), (position_name, positions) = islice(arguments.items(), 2)
    counts = arguments.get(count_name := "num_frames_per_video")
    if frames.dim() == 4:
        tensors = {position_name: positions} if isinstance(positions, Tensor) else {}
        return add_tensors(split_by_leading_dim(config, arguments), tensors)
    if not isinstance(counts, Tensor) or not isinstance(positions, Tensor):
        return None
    frames_of = counts.tolist()
    ends = list(accumulate(frames_of, initial=0))
    check_total(frame_name, len(frames), "frames", count_name, ends[-1])
    check_total(position_name, len(positions), "frames", count_name, ends[-1])

    def item_arguments(item: int) -> dict[str, Any]:
        own = slice(ends[item], ends[item + 1])
        return {frame_name: frames[own], position_name: positions[own]}

    frame = tuple(frames.shape[1:])
    parts = CallParts(
        (frame_name, position_name),
        bounds_of(ends, prod(frame)),
        [(count, *frame) for count in frames_of],
        identities_of(position_name, positions, ends),
        item_arguments,
    )
    return add_tensors(parts, {count_name: counts})
