"""`MAIN_FAMILIES`: the families that the tests of placed calls run in every mode."""

from __future__ import annotations

MAIN_FAMILIES = (
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
"""The other families of the zoo run in some modes only."""
