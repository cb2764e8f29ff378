"""Audio clips, padded to the longest one of the call: each is cropped to its own length.

The padding depends on the other clips, so it is not part of an item. If the stock method reads masked frames,
a clip that is alone in its call is not cropped: its padding is its own.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.splits.call_parts import check_total


def split_by_frame_mask(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split features `(clips, mels, T)` by a mask `(clips, T)` of the valid frames.

    With a mask, the stock methods of the Omni models do not read the third argument: the lengths.
    """
    (feature_name, features), (mask_name, mask), (length_name, _) = islice(arguments.items(), 3)
    if not isinstance(mask, Tensor):
        return None
    check_total(mask_name, len(mask), "clips", feature_name, len(features))
    calls = []
    for clip, valid in zip(features, mask.bool(), strict=True):
        frames = clip[None, :, valid.to(clip.device)]
        ones = mask.new_ones(1, frames.shape[2])
        calls.append({feature_name: frames, mask_name: ones, length_name: None})
    return calls


def split_by_sample_mask(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split samples `(clips, T)` by a mask `(clips, T)`: each clip keeps the samples of its tokens.

    As the stock method does, it reads the sum of a clip's mask, and not where the mask is true. The number of
    samples per token is in the config. Without a mask, all samples are valid.
    """
    (sample_name, samples), (mask_name, mask) = islice(arguments.items(), 2)
    if mask is None:
        return [{sample_name: clip[None], mask_name: None} for clip in samples]
    check_total(mask_name, len(mask), "clips", sample_name, len(samples))
    size = config.audio_config.samples_per_token
    lengths = list(map(int, mask.sum(-1).tolist()))
    if 0 in lengths:  # no samples make no rows: only the stock method knows how
        return None
    calls = []
    for clip, length in zip(samples, lengths, strict=True):
        end = -(-length // size) * size
        valid = (torch.arange(end, device=mask.device) < length).to(mask.dtype)
        calls.append({sample_name: clip[None, :end], mask_name: valid[None]})
    return calls


def split_by_sample_length(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Split features `(chunks, mels, T)` by the samples `(chunks,)` that each chunk of a clip had.

    Each chunk keeps the frames of its tokens. The samples per token and per frame are in the config.
    """
    (feature_name, features), (length_name, lengths) = islice(arguments.items(), 2)
    check_total(length_name, len(lengths), "chunks", feature_name, len(features))
    audio = config.audio_config
    size, frames_per_token = audio.samples_per_token, audio.samples_per_token // audio.hop_length
    calls = []
    for chunk, length in enumerate(map(int, lengths.tolist())):
        frames = -(-length // size) * frames_per_token
        one = slice(chunk, chunk + 1)
        calls.append({feature_name: features[one, :, :frames], length_name: lengths[one]})
    return calls


def split_by_stft_mask(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split features `(clips, T, mels)` by a mask `(clips, T)` of the valid frames, which come first.

    The transform of a whole clip has one frame more than its mask is true for, so each clip keeps one frame
    more. Without a mask, all frames are valid.
    """
    (feature_name, features), (mask_name, mask) = islice(arguments.items(), 2)
    if mask is None:
        return [{feature_name: clip[None], mask_name: None} for clip in features]
    check_total(mask_name, len(mask), "clips", feature_name, len(features))
    lengths = _lengths(mask.bool())
    if lengths is None:
        return None
    if len(features) == 1:
        return [{feature_name: features, mask_name: mask}]
    return [
        {feature_name: clip[None, : length + 1], mask_name: valid[None, : length + 1]}
        for clip, valid, length in zip(features, mask, lengths, strict=True)
    ]


def split_by_last_frame(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Split features `(clips, frames, values)` by a mask `(clips, frames)`, up to the last valid frame.

    This is the form of Gemma 4. Frames before the last valid one may be masked, too.
    """
    return _split_to_last(arguments, valid=True)


def split_by_padding_mask(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]] | None:
    """As `split_by_last_frame`, with a mask that is true for padding, as in Gemma 3n.

    The stock forward keeps the places of masked frames, so the valid frames must come first.
    """
    _, (_, masks) = islice(arguments.items(), 2)
    if not isinstance(masks, Tensor) or masks.dim() != 2 or _lengths(~masks.bool()) is None:
        return None
    return _split_to_last(arguments, valid=False)


def _lengths(valid: Tensor) -> list[int] | None:
    """Return the number of valid frames of each clip; None if they do not come first, or a clip has none."""
    counts = valid.sum(-1)
    come_first = torch.arange(valid.shape[1], device=valid.device) < counts[:, None]
    if not counts.all() or not torch.equal(come_first, valid):
        return None
    lengths: list[int] = counts.tolist()
    return lengths


def _split_to_last(arguments: dict[str, Any], *, valid: bool) -> list[dict[str, Any]] | None:
    (feature_name, features), (mask_name, masks) = islice(arguments.items(), 2)
    if not isinstance(masks, Tensor) or masks.dim() != 2:
        return None
    check_total(mask_name, len(masks), "clips", feature_name, len(features))
    check_total(mask_name, masks.shape[1], "frames", feature_name, features.shape[1])
    if len(features) == 1:
        return [{feature_name: features, mask_name: masks}]
    frames = [(mask.bool() == valid).nonzero() for mask in masks]
    ends = [int(clip[-1]) + 1 if len(clip) else features.shape[1] for clip in frames]
    return [
        {feature_name: features[clip : clip + 1, :end], mask_name: masks[clip : clip + 1, :end]}
        for clip, end in enumerate(ends)
    ]
