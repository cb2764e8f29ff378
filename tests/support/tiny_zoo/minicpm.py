"""MiniCPM-V and MiniCPM-OCR: the patches of all images or frames side by side, and their sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_family import END, IMAGE, START, VIDEO, Call, one_of, random_tensor
from torch import Tensor, nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

PATCH = 4
VISION = {"hidden_size": 24, "intermediate_size": 32, "image_size": 32}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
TEXT = {"rope_parameters": ROPE, "num_hidden_layers": 4}


def picture(seed: int) -> Call:
    size = one_of(seed, (4, 4), (4, 8), (8, 4))
    return {"pixel_values": patches(seed, size), "target_sizes": torch.tensor([size], dtype=torch.int32)}


def frame(seed: int) -> Call:
    """One frame of a video: a call has no number of frames per video."""
    call = picture(1000 + seed)
    return {"pixel_values_videos": call["pixel_values"], "target_sizes_videos": call["target_sizes"]}


def patches(seed: int, size: tuple[int, ...]) -> Tensor:
    return random_tensor(seed, 1, 3, PATCH, PATCH * size[0] * size[1])


def side_by_side(calls: list[Call]) -> Call:
    pixels, sizes = calls[0]
    return {
        pixels: torch.cat([call[pixels] for call in calls], dim=-1),
        sizes: torch.cat([call[sizes] for call in calls]),
    }


def token_types(input_ids: Tensor) -> Call:
    return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}


def builder(prefix: str, **tokens: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = tiny_config(
            getattr(transformers, f"{prefix}Config"),
            text_config=TEXT,
            vision_config=VISION,
            insert_layer_id=0,
            **tokens,
        )
        return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)

    return build


MEDIA = {"image": Medium(picture, side_by_side), "video": Medium(frame, side_by_side, token=VIDEO)}
_FRAMES = "an entry is a frame of a video"
MINICPM = [
    ZooModel("minicpmv4_6", builder("MiniCPMV4_6"), MEDIA, note=_FRAMES),
    ZooModel(
        "minicpmv4_7",
        builder("MiniCPMV4_7", image_start_id=START, image_end_id=END),
        MEDIA,
        token_types=token_types,
        note=_FRAMES,
    ),
    ZooModel("minicpm_ocr", builder("MiniCPMOcr"), MEDIA, note=_FRAMES),
]
