"""`WANTED`: the families whose rows the stock forward places."""

from __future__ import annotations

WANTED = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "glm4v",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "mistral3",
    "gemma3",
    "gemma4",
    "paligemma",
    "idefics3",
    "smolvlm",
)
"""The families whose rows are placed in every mode."""
