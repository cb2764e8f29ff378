"""Members of the zoo whose items are stacks: the frames of a video, or the tiles of an image."""

from __future__ import annotations

from tiny_family import VIDEO, Call, random_tensor

from tiny_zoo.builder import builder
from tiny_zoo.squares import CLIP, SIGLIP, picture
from tiny_zoo.zoo_model import Medium, ZooModel

_SLICES = 3


def _stack(name: str, seed: int) -> Call:
    return {name: random_tensor(seed, 1, _SLICES, 3, 16, 16)}


def _video(seed: int) -> Call:
    return _stack("pixel_values_videos", seed)


def _tiles(seed: int) -> Call:
    return _stack("pixel_values", seed)


STACKS = [
    ZooModel(
        "video_llava",
        builder("VideoLlava", vision_config=CLIP),
        {"image": Medium(picture), "video": Medium(_video, token=VIDEO)},
    ),
    ZooModel(
        "perception_lm",
        # The real tower needs the package timm; the projector reads its width from `model_args`.
        builder(
            "PerceptionLM",
            vision_config={
                **SIGLIP,
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                "model_args": {"embed_dim": SIGLIP["hidden_size"]},
            },
            vision_use_cls_token=False,
        ),
        {"image": Medium(_tiles)},
    ),
]
