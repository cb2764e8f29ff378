"""`split_by_last_frame`: the clips of a call, without the padding to the longest clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitcache.adapters.splits.clips import split_by_last_frame, split_by_padding_mask


def padded(*clips: Tensor) -> dict:
    longest = max(map(len, clips))
    features, masks = torch.zeros(len(clips), longest, 4), torch.zeros(len(clips), longest, dtype=torch.bool)
    for place, clip in enumerate(clips):
        features[place, : len(clip)] = clip
        masks[place, : len(clip)] = True
    return {"input_features": features, "input_features_mask": masks}


def test_split_by_last_frame_leaves_out_the_padding_by_a_longer_clip() -> None:
    short, long = torch.randn(5, 4), torch.randn(8, 4)
    (alone,) = split_by_last_frame(None, padded(short)) or ()
    _, beside = split_by_last_frame(None, padded(long, short)) or ()
    assert list(alone) == list(beside)
    assert all(torch.equal(beside[name], value) for name, value in alone.items())


def test_split_by_padding_mask_gives_the_clips_of_the_opposite_mask() -> None:
    call = padded(torch.randn(8, 4), torch.randn(5, 4))
    opposite = call | {"input_features_mask": ~call["input_features_mask"]}
    clips, opposites = split_by_last_frame(None, call), split_by_padding_mask(None, opposite)
    assert clips is not None
    assert opposites is not None
    assert [len(clip["input_features"][0]) for clip in clips] == [8, 5]
    for clip, item in zip(clips, opposites, strict=True):
        assert torch.equal(clip["input_features"], item["input_features"])
        assert not item["input_features_mask"].any()


def test_split_by_last_frame_keeps_a_clip_without_valid_frames() -> None:
    call = padded(torch.randn(5, 4))
    call["input_features_mask"][:] = False
    (item,) = split_by_last_frame(None, call) or ()
    assert item["input_features"].shape == (1, 5, 4)


def test_split_by_last_frame_without_a_mask_calls_the_stock_method() -> None:
    assert split_by_last_frame(None, padded(torch.randn(5, 4)) | {"input_features_mask": None}) is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((slice(1), slice(None)), "must have 2 clips for this input_features, got 1"),
        ((slice(None), slice(5)), "must have 8 frames for this input_features, got 5"),
    ],
)
def test_split_by_last_frame_refuses_a_mask_of_another_shape(part: tuple[slice, slice], message: str) -> None:
    call = padded(torch.randn(5, 4), torch.randn(8, 4))
    call["input_features_mask"] = call["input_features_mask"][part]
    with pytest.raises(ValueError, match=f"input_features_mask {message}"):
        split_by_last_frame(None, call)
