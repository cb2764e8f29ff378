"""InternVL in the form of transformers: tiles of 16 rows, and an overview tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_runner.tiny_models.family import Family
from engine_runner.tiny_models.folder import change_json

SPECIAL = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
TILE = 112
MOST_TILES = 4
VISION = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def config(family: Family) -> Any:
    from transformers import InternVLConfig

    return InternVLConfig(
        vision_config={**VISION, "image_size": [TILE, TILE], "patch_size": [14, 14]},
        text_config={"model_type": "qwen2", **family.text_config()},
        image_token_id=family.token("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )


def write_processors(folder: Path) -> None:
    common: dict[str, Any] = {
        "processor_class": "InternVLProcessor",
        "size": {"height": TILE, "width": TILE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    change_json(
        folder / "preprocessor_config.json",
        **common,
        image_processor_type="GotOcr2ImageProcessorFast",
        crop_to_patches=True,
        min_patches=1,
        max_patches=MOST_TILES,
    )
    change_json(
        folder / "video_preprocessor_config.json", **common, video_processor_type="InternVLVideoProcessor"
    )
    change_json(folder / "processor_config.json", processor_class="InternVLProcessor", image_seq_length=16)


INTERNVL = Family(
    "internvl",
    "interns1",
    "InternS1ForConditionalGeneration",
    placeholder="<IMG_CONTEXT>",
    special=SPECIAL,
    config=config,
    processors=write_processors,
    roles={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
)
