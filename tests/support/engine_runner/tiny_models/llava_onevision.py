"""LLaVA-OneVision: an overview tile, the tiles of the image, and a learned row at the end of each line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_runner.tiny_models.family import Family, published_siglip
from engine_runner.tiny_models.folder import change_json

SPECIAL = ("<image>", "<video>")
TILE = 56
PINPOINTS = [[height, width] for height in (TILE, 2 * TILE) for width in (TILE, 2 * TILE)]
SIGLIP = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


def config(family: Family) -> Any:
    from transformers import LlavaOnevisionConfig

    vision = {"model_type": "siglip_vision_model", **SIGLIP, "image_size": TILE, "patch_size": 14}
    return LlavaOnevisionConfig(
        vision_config={**vision, "vision_use_head": False},
        text_config={"model_type": "qwen2", **family.text_config()},
        image_grid_pinpoints=PINPOINTS,
        image_token_index=family.token("<image>"),
        video_token_index=family.token("<video>"),
        tie_word_embeddings=False,
    )


def write_processors(folder: Path) -> None:
    common: dict[str, Any] = {
        "processor_class": "LlavaOnevisionProcessor",
        "size": {"height": TILE, "width": TILE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    change_json(
        folder / "preprocessor_config.json",
        **common,
        image_grid_pinpoints=PINPOINTS,
        image_processor_type="LlavaOnevisionImageProcessorFast",
    )
    change_json(
        folder / "video_preprocessor_config.json",
        **common,
        video_processor_type="LlavaOnevisionVideoProcessor",
    )
    change_json(
        folder / "processor_config.json",
        processor_class="LlavaOnevisionProcessor",
        image_token="<image>",
        video_token="<video>",
        num_image_tokens=(TILE // 14) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


LLAVA_ONEVISION = Family(
    "llava_onevision",
    "llava_onevision",
    "LlavaOnevisionForConditionalGeneration",
    placeholder="<image>\n",
    special=SPECIAL,
    config=config,
    processors=write_processors,
    published=published_siglip,
    # Square images have the most rows. vLLM's own bound for its encoder cache is below that.
    options={"limit_mm_per_prompt": {"image": {"count": 4, "width": 128, "height": 128}, "video": 0}},
)
