"""Llama 4: the model class with the head has the stock method, whose rows are the input of its projector."""

from __future__ import annotations

from typing import Any

import torch
from tiny_family import IMAGE, Call, random_tensor
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

ROW_WIDTH = 40
VISION = {"hidden_size": 24, "image_size": 16, "intermediate_size": 96, "vision_output_dim": ROW_WIDTH}
VISION |= {"projector_input_dim": ROW_WIDTH, "projector_output_dim": ROW_WIDTH}
TEXT = {"intermediate_size_mlp": 48, "num_experts_per_tok": 1}


def picture(seed: int) -> Call:
    from transformers import Llama4ForConditionalGeneration

    call = {"pixel_values": random_tensor(seed, 1, 3, 16, 16)}
    # An older stock method must have this argument, and ignores it.
    option = "vision_feature_select_strategy"
    has_option = option in Llama4ForConditionalGeneration.get_image_features.__annotations__
    return call | {option: "default"} if has_option else call


def cat_pixels(calls: list[Call]) -> Call:
    return calls[0] | {"pixel_values": torch.cat([call["pixel_values"] for call in calls])}


def cat_states(outputs: list[Any]) -> Any:
    first = outputs[0]
    first.last_hidden_state = torch.cat([output.last_hidden_state for output in outputs])
    return first


def build() -> nn.Module:
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    config = tiny_config(Llama4Config, text_config=TEXT, vision_config=VISION, image_token_index=IMAGE)
    return Llama4ForConditionalGeneration(config)


MEDIA = {"image": Medium(picture, cat_pixels, joined=cat_states)}
LLAMA4 = [ZooModel("llama4", build, MEDIA, ROW_WIDTH, owner="")]
