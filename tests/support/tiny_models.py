"""Vision-language models with a few thousand random weights, one per family that `attach` supports."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_family import (
    END,
    HEADS,
    HIDDEN,
    IMAGE,
    PADS,
    START,
    TEXT,
    VIDEO,
    Call,
    TinyFamily,
    cat,
    joined_outputs,
    one_at_a_time,
    one_of,
    random_tensor,
    stock_method,
)
from tiny_grids import GRID_FAMILIES, GridFamily
from torch import nn

__all__ = [
    "FAMILIES",
    "GRID_FAMILIES",
    "HIDDEN",
    "IMAGE",
    "VIDEO",
    "Call",
    "GridFamily",
    "TinyFamily",
    "joined_outputs",
    "names_of_examples",
    "one_at_a_time",
    "stock_method",
]

SIGLIP = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}

# Modules whose docstring examples use `model` and `inputs` without defining them.
MODULES_WITH_MODEL_EXAMPLES = (
    "vitcache.adapters.attachment",
    "vitcache.adapters.changes.invalidate_callback",
    "vitcache.adapters.changes.invalidation",
    "vitcache.adapters.chunked_prefill",
    "vitcache.adapters.model_pipeline",
    "vitcache.adapters.prefill_batch",
    "vitcache.adapters.prompt_items",
    "vitcache.adapters.row_counts.image_rows",
    "vitcache.adapters.row_counts.weightless_model",
    "vitcache.adapters.transformers",
)


def names_of_examples(module: str) -> dict[str, Any]:
    """Return the names that the docstring examples of a module use without making them.

    Modules about transformers use a Qwen2.5-VL, and its inputs for a prompt with one image. If transformers
    is not installed, the test is skipped.
    """
    if module not in MODULES_WITH_MODEL_EXAMPLES:
        return {}
    pytest.importorskip("transformers")
    family = FAMILIES["qwen2_5_vl"]
    model = family.model()
    return {"model": model, "inputs": family.prompt(model, 0)}


# LLaVA-OneVision: an overview tile and the tiles of the image, padded to the most tiles of the call.


def _llava() -> nn.Module:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config={"model_type": "siglip_vision_model", **SIGLIP, "image_size": 8, "patch_size": 4},
            text_config={
                "model_type": "qwen2",
                **TEXT,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                **PADS,
            },
            image_grid_pinpoints=[[8, 8], [8, 16], [16, 8], [16, 16]],
            image_token_id=IMAGE,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            video_token_id=VIDEO,
        )
    )


LLAVA_TILES = {(8, 8): 2, (8, 14): 3, (15, 9): 5}


def _llava_picture(seed: int) -> Call:
    size = one_of(seed, *LLAVA_TILES)
    return {
        "pixel_values": random_tensor(seed, 1, LLAVA_TILES[size], 3, 8, 8),
        "image_sizes": torch.tensor([size]),
    }


def _llava_join(calls: list[Call]) -> Call:
    most = max(call["pixel_values"].shape[1] for call in calls)
    filled = [
        {
            **call,
            "pixel_values": nn.functional.pad(
                call["pixel_values"], (0,) * 7 + (most - call["pixel_values"].shape[1],)
            ),
        }
        for call in calls
    ]
    return cat(filled)


def _llava_part(call: Call) -> list[Call]:
    shared = {k: v for k, v in call.items() if k not in ("pixel_values", "image_sizes", "batch_num_images")}
    parts = []
    for pixels, size in zip(call["pixel_values"], call["image_sizes"], strict=True):
        tiles = pixels[None, : LLAVA_TILES[tuple(size.tolist())]]
        parts.append({"pixel_values": tiles, "image_sizes": size[None], **shared})
    return parts


# InternVL and Gemma 3: the first dimension has one image or tile per index.


def _square_picture(seed: int) -> Call:
    return {"pixel_values": random_tensor(seed, 1, 3, 16, 16)}


def _square_part(call: Call) -> list[Call]:
    return [{**call, "pixel_values": image[None]} for image in call["pixel_values"]]


def _internvl() -> nn.Module:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = {**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]}
    text = {"model_type": "qwen2", **TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, **PADS}
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    )


def _gemma3() -> nn.Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"model_type": "siglip_vision_model", **SIGLIP, "image_size": 16, "patch_size": 4}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config={**vision, "vision_use_head": False},
            text_config={**TEXT, **HEADS, "sliding_window": 8, **PADS},
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            image_token_id=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        )
    )


FAMILIES: dict[str, TinyFamily] = GRID_FAMILIES | {
    family.name: family
    for family in (
        TinyFamily("llava_onevision", _llava, _llava_picture, _llava_join, _llava_part, "vision_tower"),
        TinyFamily("internvl", _internvl, _square_picture, cat, _square_part, "vision_tower"),
        TinyFamily(
            "gemma3",
            _gemma3,
            _square_picture,
            cat,
            _square_part,
            "vision_tower",
            token_types=lambda ids: {"token_type_ids": (ids == IMAGE).int()},
        ),
    )
}
