"""Ovis2: the stock output has the features of indicator tokens, too, which surround the images' tokens."""

from __future__ import annotations

from tiny_family import IMAGE, Call, random_tensor
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

INDICATORS = [100, 101, 102, 103, 104]
VISION = {"hidden_size": 24, "intermediate_size": 32, "image_size": 16, "vocab_size": 64}


def picture(seed: int) -> Call:
    return {"pixel_values": random_tensor(seed, 1, 3, 16, 16)}


def surrounded(length: int) -> list[int]:
    """The tokens of one image, as the processor writes them for an image of one tile."""
    start, *_, separator, end = INDICATORS
    return [start, *[IMAGE] * length, separator, end]


def build() -> nn.Module:
    from transformers import Ovis2Config, Ovis2ForConditionalGeneration

    config = tiny_config(
        Ovis2Config,
        vision_config=VISION,
        image_token_id=IMAGE,
        visual_indicator_token_ids=INDICATORS,
    )
    return Ovis2ForConditionalGeneration(config)


OVIS2 = [ZooModel("ovis2", build, {"image": Medium(picture, tokens=surrounded)})]
