"""Members of the zoo whose images are tiles, padded to the most tiles of the call."""

from __future__ import annotations

from tiny_family import END, START, VIDEO, Call, random_tensor
from tiny_models import FAMILIES

from tiny_zoo.builder import builder
from tiny_zoo.squares import CLIP
from tiny_zoo.zoo_model import Medium, ZooModel

# The tiles, image sizes and pinpoints of the tiny LLaVA-OneVision.
_ONEVISION = FAMILIES["llava_onevision"]
_PINPOINTS = [[8, 8], [8, 16], [16, 8], [16, 16]]
_CLIP = {**CLIP, "image_size": 8}
_IMAGE = Medium(_ONEVISION.picture, _ONEVISION.join)


def _video(seed: int) -> Call:
    return {"pixel_values_videos": random_tensor(seed, 1, 2, 3, 8, 8)}


def _with_break(length: int) -> list[int]:
    """Two frames of one row each, and a break that the stock method or forward adds."""
    return [START, *[VIDEO] * 3, END]


VIDEO_OF_ONEVISION = Medium(_video, token=VIDEO, tokens=_with_break)

TILES = [
    ZooModel(
        "llava_next",
        builder("LlavaNext", vision_config=_CLIP, image_grid_pinpoints=_PINPOINTS),
        {"image": _IMAGE},
    ),
    ZooModel(
        "llava_next_video",
        builder("LlavaNextVideo", vision_config=_CLIP, image_grid_pinpoints=_PINPOINTS),
        {"image": _IMAGE, "video": Medium(_video, token=VIDEO)},
    ),
]
