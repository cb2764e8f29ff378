"""Aria: crops of one size, each with a mask of its valid pixels."""

from __future__ import annotations

import torch
from tiny_family import IMAGE, Call, one_of, random_tensor
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

SIDE, QUERIES = 16, {16: 4}
VISION = {"hidden_size": 24, "intermediate_size": 32, "image_size": SIDE}


def crop(seed: int) -> Call:
    height, width = one_of(seed, (SIDE, SIDE), (SIDE // 2, SIDE), (SIDE, SIDE // 2))
    pixels, mask = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    pixels[..., :height, :width] = random_tensor(seed, 1, 3, height, width)
    mask[:, :height, :width] = True
    return {"pixel_values": pixels, "pixel_mask": mask}


def build() -> nn.Module:
    from transformers import AriaConfig, AriaForConditionalGeneration

    changes = {"vision_config": VISION, "projector_patch_to_query_dict": QUERIES, "image_token_index": IMAGE}
    return AriaForConditionalGeneration(tiny_config(AriaConfig, **changes))


ARIA = [ZooModel("aria", build, {"image": Medium(crop)})]
