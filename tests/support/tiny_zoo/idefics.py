"""Idefics 2, Idefics 3 and SmolVLM: `(prompts, images, C, H, W)`, padded to the largest image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_family import IMAGE, Call, one_of, random_tensor
from torch import nn
from torch.nn.functional import pad

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

VISION = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 16}
PERCEIVER = {"resampler_n_latents": 3, "resampler_n_heads": 2, "resampler_head_dim": 16}


def square(seed: int) -> Call:
    """An image within a square of 16x16 pixels, which the tower must have."""
    call = photo(seed)
    *_, height, width = call["pixel_values"].shape
    return {name: pad(value, (0, 16 - width, 0, 16 - height)) for name, value in call.items()}


def photo(seed: int) -> Call:
    height, width = one_of(seed, (16, 16), (8, 16), (16, 12))
    pixels = random_tensor(seed, 1, 1, 3, height, width)
    return {"pixel_values": pixels, "pixel_attention_mask": mask(height, width)}


def mask(height: int, width: int) -> torch.Tensor:
    return torch.ones(1, 1, height, width, dtype=torch.long)


def one_prompt(calls: list[Call]) -> Call:
    height, width = (max(call["pixel_values"].shape[axis] for call in calls) for axis in (3, 4))

    def joined(name: str) -> torch.Tensor:
        parts = (call[name] for call in calls)
        edges = [(part, (0, width - part.shape[-1], 0, height - part.shape[-2])) for part in parts]
        return torch.cat([pad(part, edge) for part, edge in edges], dim=1)

    return {name: joined(name) for name in calls[0]}


def builder(prefix: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config_class = getattr(transformers, f"{prefix}Config")
        parts = {"vision_config": VISION, "image_token_id": IMAGE}
        if prefix == "Idefics2":
            parts["perceiver_config"] = PERCEIVER
        return getattr(transformers, f"{prefix}ForConditionalGeneration")(tiny_config(config_class, **parts))

    return build


IDEFICS = [
    ZooModel("idefics2", builder("Idefics2"), {"image": Medium(photo, one_prompt)}),
    ZooModel("idefics3", builder("Idefics3"), {"image": Medium(square, one_prompt)}),
    ZooModel("smolvlm", builder("SmolVLM"), {"image": Medium(square, one_prompt)}),
]
