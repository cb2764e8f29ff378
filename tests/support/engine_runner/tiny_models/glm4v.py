"""GLM-4V: images of any size, and text with rotary positions in half of the columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_runner.tiny_models.family import HIDDEN, MAX_PIXELS, Family
from engine_runner.tiny_models.folder import change_json

SPECIAL = (
    *("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>"),
)
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 3, 3]}
SIZE = {"shortest_edge": 64 * 64, "longest_edge": MAX_PIXELS}


def config(family: Family) -> Any:
    from transformers import Glm4vConfig

    return Glm4vConfig(
        text_config=family.text_config(rope_parameters=ROPE),
        vision_config={
            "depth": 3,
            "num_heads": 4,
            "hidden_size": 128,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 256,
            "image_size": 336,
            "patch_size": 14,
        },
        image_token_id=family.token("<|image|>"),
        video_token_id=family.token("<|video|>"),
        image_start_token_id=family.token("<|begin_of_image|>"),
        image_end_token_id=family.token("<|end_of_image|>"),
        video_start_token_id=family.token("<|begin_of_video|>"),
        video_end_token_id=family.token("<|end_of_video|>"),
        tie_word_embeddings=False,
    )


def write_processors(folder: Path) -> None:
    common: dict[str, Any] = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "Glm4vProcessor",
        "size": SIZE,
    }
    change_json(folder / "preprocessor_config.json", **common, image_processor_type="Glm4vImageProcessorFast")
    change_json(
        folder / "video_preprocessor_config.json", **common, video_processor_type="Glm4vVideoProcessor"
    )


GLM4V = Family(
    "glm4v",
    "glm4_1v",
    "Glm4vForConditionalGeneration",
    placeholder="<|begin_of_image|><|image|><|end_of_image|>",
    special=SPECIAL,
    config=config,
    processors=write_processors,
)
