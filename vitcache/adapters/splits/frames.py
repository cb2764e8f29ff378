"""`split_by_frames`: the frames of all videos, end to end, with positions, and the frames per video."""

from __future__ import annotations

from itertools import accumulate, islice, pairwise
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, check_total
from vitcache.adapters.splits.rows import rows_of


def split_by_frames(config: Any, arguments: dict[str, Any]) -> CallParts | list[dict[str, Any]] | None:
    """Split frames `(sum of frames, patches, values)` of all videos by `num_frames_per_video`, as in Gemma 4.

    In transformers 5.17 the frames are `(videos, frames, patches, values)`, without that argument.
    """
    (frame_name, frames), (position_name, positions) = islice(arguments.items(), 2)
    counts = arguments.get(count_name := "num_frames_per_video")
    if frames.dim() == 4:
        return rows_of(position_name)(config, arguments)
    if not isinstance(counts, Tensor) or not isinstance(positions, Tensor):
        return None
    ends = list(accumulate(counts.tolist(), initial=0))
    check_total(frame_name, len(frames), "frames", count_name, ends[-1])
    check_total(position_name, len(positions), "frames", count_name, ends[-1])
    return [
        {
            frame_name: frames[start:end],
            position_name: positions[start:end],
            count_name: counts[item : item + 1],
        }
        for item, (start, end) in enumerate(pairwise(ends))
    ]
