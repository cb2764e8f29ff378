"""Nemotron Omni: images of patches, and audio clips.

In 5.23 the stock forward raises a TypeError for every video.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from tiny_family import HIDDEN, Call, one_of, random_tensor
from torch import nn
from torch.nn.functional import pad

from tiny_zoo.configs import AUDIO, tiny_config
from tiny_zoo.omni import padded_clips
from tiny_zoo.zoo_model import Medium, ZooModel

MELS = 8
PATCH = 3 * 4 * 4


def _build() -> nn.Module:
    from transformers import NemotronH_Omni_Reasoning_V3, NemotronH_Omni_Reasoning_V3_Config

    tower: dict[str, Any] = {"num_registers": 1, "num_cls_tokens": 2, "max_img_size": 32, "image_size": 16}
    sound = {
        "subsampling_conv_channels": 8,
        "num_mel_bins": MELS,
        "conv_kernel_size": 3,
        "hidden_size": HIDDEN,
    }
    sound |= {"num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
    text = {
        "layers_block_type": ["mamba", "full_attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
    }
    text |= {"ssm_state_size": 8, "n_groups": 2, "chunk_size": 8, "moe_shared_expert_intermediate_size": 16}
    return NemotronH_Omni_Reasoning_V3(
        tiny_config(
            NemotronH_Omni_Reasoning_V3_Config,
            vision_config=tower,
            text_config=text,
            audio_config=sound | {"projection_hidden_size": 16, "projection_bias": False},
            vision_hidden_size=HIDDEN,
            projector_hidden_size=48,
        )
    )


def _picture(seed: int) -> Call:
    grid = one_of(seed, (4, 4), (4, 6), (2, 4))
    return {"pixel_values": random_tensor(seed, prod(grid), PATCH), "image_grid_hw": torch.tensor([grid])}


def _sound(seed: int) -> Call:
    """The frames of a clip: one more than the mask is true for."""
    [frames] = one_of(seed, (40,), (64,), (25,))
    mask = torch.ones(1, frames, dtype=torch.bool)
    return {
        "input_features": random_tensor(2000 + seed, 1, frames + 1, MELS),
        "input_features_mask": pad(mask, (0, 1)),
    }


NEMOTRON: list[ZooModel] = [
    ZooModel(
        "nemotron_h_omni",
        _build,
        {
            "image": Medium(_picture),
            "audio": Medium(_sound, padded_clips, AUDIO),
        },
        owner="",
        note="videos: the stock forward raises a TypeError",
    )
]
