"""`split_by_frames`: the frames of all videos, divided by the number of frames per video."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitcache.adapters.splits.frames import split_by_frames

FRAMES, POSITIONS = torch.randn(5, 4, 3), torch.arange(40).view(5, 4, 2)


def arguments(counts: Tensor | None, positions: Tensor = POSITIONS) -> dict:
    return {
        "pixel_values_videos": FRAMES,
        "video_position_ids": positions,
        "num_frames_per_video": counts,
    }


def test_split_by_frames_gives_one_item_per_video() -> None:
    parts = split_by_frames(None, arguments(torch.tensor([2, 3])))
    assert parts is not None
    assert parts.bounds is not None
    assert len(parts.shapes) == 2
    for number, frames in enumerate((slice(0, 2), slice(2, 5))):
        item = parts.item_call(number).arguments
        assert tuple(item) == parts.names
        assert torch.equal(item["pixel_values_videos"], FRAMES[frames])
        first, last = parts.bounds[number]
        assert torch.equal(FRAMES.flatten()[first:last].view(parts.shapes[number]), FRAMES[frames])
        assert torch.equal(item["video_position_ids"], POSITIONS[frames])
        assert item["num_frames_per_video"].tolist() == [frames.stop - frames.start]


def test_split_by_frames_of_stacked_videos_gives_their_rows() -> None:
    parts = split_by_frames(
        None, {"pixel_values_videos": FRAMES[None], "video_position_ids": POSITIONS[None]}
    )
    assert parts is not None
    assert parts.shapes == [(1, 5, 4, 3)]


def test_split_by_frames_without_counts_calls_the_stock_method() -> None:
    assert split_by_frames(None, arguments(None)) is None


def test_split_by_frames_refuses_another_number_of_frames() -> None:
    message = "pixel_values_videos must have 4 frames for this num_frames_per_video, got 5"
    with pytest.raises(ValueError, match=message):
        split_by_frames(None, arguments(torch.tensor([2, 2])))


def test_split_by_frames_refuses_another_number_of_positions() -> None:
    message = "video_position_ids must have 5 frames for this num_frames_per_video, got 4"
    with pytest.raises(ValueError, match=message):
        split_by_frames(None, arguments(torch.tensor([2, 3]), POSITIONS[:4]))
