"""Members of the zoo whose items are stacks: the frames of a video, or the tiles of an image."""

from __future__ import annotations

import inspect

from tiny_family import VIDEO, Call, random_tensor
from torch import nn

from tiny_zoo.builder import builder
from tiny_zoo.configs import tiny_config
from tiny_zoo.towers import CLIP, SIGLIP, square
from tiny_zoo.zoo_model import APART, Medium, ZooModel


def _stack(name: str, seed: int) -> Call:
    return {name: random_tensor(seed, 1, 3 if seed < min(APART)[0] else 2, 3, 16, 16)}


def _video(seed: int) -> Call:
    return _stack("pixel_values_videos", seed)


def _tiles(seed: int) -> Call:
    return _stack("pixel_values", seed)


def _picture(seed: int) -> Call:
    from transformers import VideoLlavaModel

    names = inspect.signature(VideoLlavaModel.forward).parameters
    # Older versions have only the second name.
    name = "pixel_values" if "pixel_values" in names else "pixel_values_images"
    return {name: square(seed)["pixel_values"]}


def _perception_lm() -> nn.Module:
    """The real tower needs the package timm. The projector reads the width of a tower from `model_args`."""
    from transformers import PerceptionLMConfig, PerceptionLMForConditionalGeneration, SiglipVisionConfig

    tower = SiglipVisionConfig(**SIGLIP, num_hidden_layers=2, num_attention_heads=2, vision_use_head=False)
    tower.model_args = {"embed_dim": tower.hidden_size}
    config = tiny_config(PerceptionLMConfig, vision_config=tower, vision_use_cls_token=False)
    return PerceptionLMForConditionalGeneration(config)


STACKS = [
    ZooModel(
        "video_llava",
        builder("VideoLlava", vision_config=CLIP),
        {"image": Medium(_picture), "video": Medium(_video, token=VIDEO, apart=APART)},
    ),
    ZooModel(
        "perception_lm",
        _perception_lm,
        {"image": Medium(_tiles, apart=APART)},
        note="a SigLIP stands in for the tower of timm",
    ),
]
