"""The clips of a call, without the padding to the longest clip."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcache.adapters.splits.clips import (
    split_by_last_frame,
    split_by_padding_mask,
    split_by_sample_mask,
    split_by_stft_mask,
)


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


@pytest.mark.parametrize("split", [split_by_stft_mask, split_by_padding_mask])
@pytest.mark.parametrize("mask", [[0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]])
def test_mask_whose_valid_frames_do_not_come_first_is_left_to_the_stock_method(
    split: Any, mask: list[int]
) -> None:
    valid = torch.tensor([[1, 1, 1, 0], mask], dtype=torch.bool)
    arguments = {
        "input_features": torch.randn(2, 4, 3),
        "mask": ~valid if split is split_by_padding_mask else valid,
    }
    assert split(None, arguments) is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_all_dtypes_give_the_same_frames(dtype: torch.dtype) -> None:
    valid = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).to(dtype)
    features = torch.randn(2, 4, 3)
    calls = split_by_stft_mask(None, {"input_features": features, "mask": valid})
    assert [call["input_features"].shape[1] for call in calls or []] == [4, 3]
    config = SimpleNamespace(audio_config=SimpleNamespace(samples_per_token=2, hop_length=1))
    sounds = split_by_sample_mask(config, {"input_values": features[..., 0], "mask": valid})
    assert [sound["input_values"].shape[1] for sound in sounds or []] == [4, 2]


def test_clip_without_samples_is_left_to_the_stock_method() -> None:
    config = SimpleNamespace(audio_config=SimpleNamespace(samples_per_token=2))
    arguments = {"input_values": torch.randn(2, 4), "mask": torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])}
    assert split_by_sample_mask(config, arguments) is None
