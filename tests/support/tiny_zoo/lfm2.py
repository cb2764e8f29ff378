"""LFM2-VL: patches of each image, padded to a fixed number, with a height and width and a mask."""

from __future__ import annotations

from math import prod

import torch
from tiny_family import IMAGE, Call, one_of, random_tensor
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

PATCHES, VALUES = 16, 3 * 4 * 4
VISION = {"hidden_size": 24, "intermediate_size": 32, "num_patches": PATCHES, "vision_use_head": False}
TEXT = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}


def picture(seed: int) -> Call:
    size = one_of(seed, (4, 4), (2, 4), (4, 2))
    pixels, mask = torch.zeros(1, PATCHES, VALUES), torch.zeros(1, PATCHES, dtype=torch.long)
    pixels[:, : prod(size)] = random_tensor(seed, 1, prod(size), VALUES)
    mask[:, : prod(size)] = 1
    return {"pixel_values": pixels, "spatial_shapes": torch.tensor([size]), "pixel_attention_mask": mask}


def build() -> nn.Module:
    from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

    config = tiny_config(
        Lfm2VlConfig,
        text_config=TEXT,
        vision_config=VISION,
        image_token_id=IMAGE,
        projector_hidden_size=32,
    )
    return Lfm2VlForConditionalGeneration(config)


LFM2 = [ZooModel("lfm2_vl", build, {"image": Medium(picture)})]
