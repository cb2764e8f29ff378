"""Gemma 3: 64 rows for each image, and text rows that are scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_runner.tiny_models.family import Family, published_siglip
from engine_runner.tiny_models.folder import change_json

# vLLM joins the line ends around an image to these tokens.
LINE_ENDS = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")
SPECIAL = ("<start_of_image>", "<end_of_image>", "<image_soft_token>", *LINE_ENDS)
SIDE = 224
ROWS = 64
SIGLIP = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}


def config(family: Family) -> Any:
    from transformers import Gemma3Config

    text = family.text_config(
        query_pre_attn_scalar=2,  # sharp attention, so that images change the tokens
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
    )
    return Gemma3Config(
        vision_config={**SIGLIP, "image_size": SIDE, "patch_size": 14, "vision_use_head": False},
        text_config={**text, "tie_word_embeddings": True},
        mm_tokens_per_image=ROWS,
        image_token_index=family.token("<image_soft_token>"),
        boi_token_index=family.token("<start_of_image>"),
        eoi_token_index=family.token("<end_of_image>"),
    )


def write_processors(folder: Path) -> None:
    common: dict[str, Any] = {"processor_class": "Gemma3Processor", "image_seq_length": ROWS}
    change_json(
        folder / "preprocessor_config.json",
        **common,
        image_processor_type="Gemma3ImageProcessorFast",
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    change_json(folder / "processor_config.json", **common)


GEMMA3 = Family(
    "gemma3",
    "gemma3_mm",
    "Gemma3ForConditionalGeneration",
    # Two images without text between them share a token of line ends. A stock engine whose encoder cache
    # holds one image would then wait for ever: the shared token is computed with the second image only.
    placeholder="<start_of_image> ",
    special=SPECIAL,
    config=config,
    processors=write_processors,
    published=published_siglip,
    # The text rows are scaled, and the head has the same weights: with more, a token would repeat for ever.
    embedding_deviation=0.02,
    roles={
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
)
