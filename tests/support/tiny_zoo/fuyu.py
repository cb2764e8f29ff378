"""Fuyu: one linear layer is the vision tower; its rows are last hidden states."""

from __future__ import annotations

from typing import Any

import torch
from tiny_family import IMAGE, Call, random_tensor
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import APART, Medium, ZooModel

VALUES = 3 * 4 * 4


def patches(seed: int) -> Call:
    from transformers import FuyuModel

    older = "image_patches"  # the name in the forward of transformers 5.17
    name = older if older in FuyuModel.forward.__annotations__ else "pixel_values"
    return {name: random_tensor(seed, 1, 6 if seed < min(APART)[0] else 4, VALUES)}


def cat_states(outputs: list[Any]) -> Any:
    first = outputs[0]
    first.last_hidden_state = torch.cat([output.last_hidden_state for output in outputs])
    return first


def build() -> nn.Module:
    from transformers import FuyuConfig, FuyuForCausalLM

    return FuyuForCausalLM(tiny_config(FuyuConfig, image_token_id=IMAGE))


FUYU = [ZooModel("fuyu", build, {"image": Medium(patches, joined=cat_states, apart=APART)})]
