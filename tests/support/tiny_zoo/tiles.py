"""Members of the zoo whose images are tiles, padded to the most tiles of the call."""

from __future__ import annotations

from typing import Any

from tiny_family import END, HIDDEN, START, VIDEO, Call, random_tensor
from tiny_models import FAMILIES

from tiny_zoo.builder import builder
from tiny_zoo.towers import CLIP
from tiny_zoo.zoo_model import APART, Medium, ZooModel

# The tiles, image sizes and pinpoints of the tiny LLaVA-OneVision.
_ONEVISION = FAMILIES["llava_onevision"]
_PINPOINTS = [[8, 8], [8, 16], [16, 8], [16, 16]]
_CLIP = {**CLIP, "image_size": 8}
_IMAGE = Medium(_ONEVISION.picture, _ONEVISION.join)


def _video(seed: int) -> Call:
    frames = 2 if seed < min(APART)[0] else 3
    return {"pixel_values_videos": random_tensor(seed, 1, frames, 3, 8, 8)}


def _with_break(call: Call, length: int) -> list[int]:
    """A row for each frame, and a break that the stock method or forward adds."""
    frames = call["pixel_values_videos"].shape[1]
    return [START, *[VIDEO] * (frames + 1), END]


VIDEO_OF_ONEVISION = Medium(_video, token=VIDEO, layout=_with_break, apart=APART)


_QFORMER = {
    "hidden_size": 64,
    "encoder_hidden_size": 64,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "cross_attention_frequency": 1,
}


def _joined_layers(outputs: list[Any]) -> Any:
    """One output of outputs whose features are pairs of a layer and the features of the images."""
    first, *_ = outputs
    layers = zip(*(output.deepstack_features for output in outputs), strict=True)
    first.deepstack_features = [
        (pairs[0][0], [image for _, images in pairs for image in images]) for pairs in layers
    ]
    return first


TILES = [
    ZooModel(
        "llava_next",
        builder("LlavaNext", vision_config=_CLIP, image_grid_pinpoints=_PINPOINTS),
        {"image": _IMAGE},
    ),
    ZooModel(
        "llava_next_video",
        builder("LlavaNextVideo", vision_config=_CLIP, image_grid_pinpoints=_PINPOINTS),
        {"image": _IMAGE, "video": Medium(_video, token=VIDEO, apart=APART)},
    ),
    ZooModel(
        "granite4_vision",
        builder(
            "Granite4Vision",
            vision_config={**_CLIP, "model_type": "clip_vision_model", "patch_size": 2, "hidden_size": 64},
            text_config={"model_type": "granite4_vision_text", "num_hidden_layers": 6},
            qformer_config=_QFORMER,
            image_grid_pinpoints=_PINPOINTS,
            downsample_rate="1/2",
            deepstack_layer_map=[[-2, 0], [-1, 1]],
            spatial_target_layers=[2, 3, 4, 5],
        ),
        {"image": Medium(_ONEVISION.picture, _ONEVISION.join, joined=_joined_layers)},
        row_width=6 * HIDDEN,
    ),
]
