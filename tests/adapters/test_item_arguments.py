"""Arguments beside the pixels or the sound that decide the rows of an item: masks, lengths, merge sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from tiny_zoo import ZOO
from tiny_zoo.zoo_model import Medium
from torch import Tensor, nn

from vitcache.adapters.transformers import Attachment, attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


def attached(name: str, modality: str) -> tuple[nn.Module, Medium, Attachment]:
    zoo = ZOO[name]
    if not zoo.exists:
        pytest.skip(f"this transformers has no {name}")
    model = zoo.model()
    attachment = attach(model)
    return zoo.features_owner(model), zoo.media[modality], attachment


@torch.no_grad()
def rows_of(owner: nn.Module, modality: str, call: dict[str, Any]) -> Tensor:
    output = getattr(owner, f"get_{modality}_features")(**call)
    rows = output.last_hidden_state if output.pooler_output is None else output.pooler_output
    return rows if isinstance(rows, Tensor) else torch.cat(rows)


@pytest.mark.parametrize("name", ["qwen2_5_omni_thinker", "muse_spark", "dots3_note", "nemotron_h_omni"])
def test_clip_with_more_padding_is_the_same_entry(name: str) -> None:
    owner, medium, attachment = attached(name, "audio")
    alone = rows_of(owner, "audio", medium.make(0))
    together = rows_of(owner, "audio", medium.join([medium.make(0), medium.make(1)]))
    assert torch.equal(together[: len(alone)], alone)
    assert (attachment.stats().encoded, attachment.stats().hits) == (2, 1)


@pytest.mark.parametrize(
    ("name", "sound", "mask"),
    [
        ("muse_spark", "input_values", "input_values_mask"),
        ("nemotron_h_omni", "input_features", "input_features_mask"),
    ],
)
def test_clips_without_a_mask_are_entries_of_their_whole_length(name: str, sound: str, mask: str) -> None:
    owner, medium, attachment = attached(name, "audio")
    both = torch.cat([medium.make(0)[sound], -medium.make(0)[sound]])
    got = rows_of(owner, "audio", {sound: both, mask: None})
    attachment.detach()
    stock = [rows_of(owner, "audio", {sound: clip[None], mask: None}) for clip in both]
    assert torch.equal(got, torch.cat(stock))
    assert (attachment.stats().encoded, attachment.stats().bypassed) == (2, 0)


@pytest.mark.parametrize(
    ("name", "modality", "argument"),
    [
        ("qwen2_5_omni_thinker", "audio", "feature_attention_mask"),
        ("muse_spark", "audio", "input_values_mask"),
        ("dots3_note", "audio", "chunk_sample_lengths"),
        ("nemotron_h_omni", "audio", "input_features_mask"),
        ("video_llama_3", "image", "image_merge_sizes"),
    ],
)
def test_wrong_number_of_masks_lengths_or_sizes_raises(name: str, modality: str, argument: str) -> None:
    owner, medium, attachment = attached(name, modality)
    call = medium.join([medium.make(0), medium.make(1)])
    with pytest.raises(ValueError, match=rf"{argument} must have 2 \w+ for this \w+, got 1"):
        rows_of(owner, modality, call | {argument: call[argument][:1]})
    assert len(attachment.cache) == 0


def test_same_patches_with_another_merge_size_are_another_entry() -> None:
    owner, medium, attachment = attached("video_llama_3", "image")
    call = medium.make(0)
    for size in (1, 2, 1):
        rows = rows_of(owner, "image", call | {"image_merge_sizes": torch.tensor([size])})
        assert len(rows) * size**2 == len(call["pixel_values"])
    assert (attachment.stats().encoded, attachment.stats().hits) == (2, 1)
