"""Granite Docling: tiles of each prompt, a mask of the tiles that are not padding, and deepstack levels."""

from __future__ import annotations

import torch
from tiny_family import HIDDEN, IMAGE, Call, random_tensor
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

SIDE = 16
VISION = {"hidden_size": 24, "intermediate_size": 32, "image_size": SIDE, "scale_factor": 2}
VISION |= {"deepstack_visual_indexes": [0]}


def tile(seed: int) -> Call:
    mask = torch.ones(1, 1, dtype=torch.bool)
    return {"pixel_values": random_tensor(seed, 1, 1, 3, SIDE, SIDE), "pixel_attention_mask": mask}


def one_prompt(calls: list[Call]) -> Call:
    return {name: torch.cat([call[name] for call in calls], dim=1) for name in calls[0]}


def build() -> nn.Module:
    from transformers import GraniteDoclingConfig, GraniteDoclingForConditionalGeneration

    config = tiny_config(GraniteDoclingConfig, vision_config=VISION, image_token_id=IMAGE)
    return GraniteDoclingForConditionalGeneration(config)


MEDIA = {"image": Medium(tile, one_prompt)}
GRANITE_DOCLING = [
    ZooModel("granite_docling", build, MEDIA, 2 * HIDDEN, note="an entry is a tile of an image")
]
