"""Llama 4: the model class with the head has the stock method, whose rows are the input of its projector."""

from __future__ import annotations

from tiny_family import IMAGE, Call, random_tensor
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

ROW_WIDTH = 40
VISION = {"hidden_size": 24, "image_size": 16, "intermediate_size": 96, "vision_output_dim": ROW_WIDTH}
VISION |= {"projector_input_dim": ROW_WIDTH, "projector_output_dim": ROW_WIDTH}
TEXT = {"intermediate_size_mlp": 48, "num_experts_per_tok": 1}


def picture(seed: int) -> Call:
    return {"pixel_values": random_tensor(seed, 1, 3, 16, 16)}


def build() -> nn.Module:
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    config = tiny_config(Llama4Config, text_config=TEXT, vision_config=VISION, image_token_index=IMAGE)
    return Llama4ForConditionalGeneration(config)


LLAMA4 = [ZooModel("llama4", build, {"image": Medium(picture)}, ROW_WIDTH, owner="")]
