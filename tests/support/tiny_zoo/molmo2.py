"""Molmo 2: crops of all images, and the numbers of the patches that each token pools."""

from __future__ import annotations

import torch
from tiny_family import IMAGE, Call, random_tensor
from torch import Tensor, nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

PATCHES, VALUES = 16, 3 * 4 * 4
VISION = {"hidden_size": 24, "num_key_value_heads": 2, "head_dim": 12, "image_size": [16, 16]}
VISION |= {"num_position_embeddings": PATCHES}
ADAPTER = {"hidden_size": 24, "num_key_value_heads": 2, "head_dim": 12, "text_hidden_size": 32}
ADAPTER |= {"vision_feature_layer": [1, 0]}


def picture(seed: int) -> Call:
    """An overview and one or more crops."""
    crops = 1 + seed % 3
    pixels = random_tensor(seed, 1 + crops, PATCHES, VALUES)
    grid = torch.tensor([[2, 2, 2, 2 * crops]])
    return {"pixel_values": pixels, "image_token_pooling": windows(1 + crops), "image_grids": grid}


def clip(seed: int) -> Call:
    frames = 1 + (seed + 1) % 3
    pixels = random_tensor(1000 + seed, frames, PATCHES, VALUES)
    grid = torch.tensor([[frames, 2, 2]])
    return {"pixel_values_videos": pixels, "video_token_pooling": windows(frames), "video_grids": grid}


def windows(crops: int) -> Tensor:
    """The patches of each window of 2x2 patches. The last patch of the first window is padding."""
    patches = torch.arange(crops * PATCHES).view(crops, 2, 2, 2, 2)
    pooled = patches.transpose(2, 3).reshape(-1, 4)
    pooled[0, 3] = -1
    return pooled


def joined(calls: list[Call]) -> Call:
    """One call: the numbers of an item's patches begin behind those of the item before."""
    pixels, pooling, grids = calls[0]
    pools, patches = [], 0
    for call in calls:
        pools.append(torch.where(call[pooling] >= 0, call[pooling] + patches, -1))
        patches += len(call[pixels]) * PATCHES
    parts = {name: torch.cat([call[name] for call in calls]) for name in (pixels, grids)}
    return {pixels: parts[pixels], pooling: torch.cat(pools), grids: parts[grids]}


def build() -> nn.Module:
    from transformers import Molmo2Config, Molmo2ForConditionalGeneration

    parts = {"vision_config": VISION, "adapter_config": ADAPTER, "image_patch_id": IMAGE}
    return Molmo2ForConditionalGeneration(tiny_config(Molmo2Config, **parts))


MEDIA = {"image": Medium(picture, joined), "video": Medium(clip, joined)}
MOLMO2 = [ZooModel("molmo2", build, MEDIA)]
