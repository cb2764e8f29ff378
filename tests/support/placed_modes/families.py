"""`MAIN_FAMILIES`: the families that `make test` runs in every mode of placed calls."""

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
"""`make test` runs the other families of the zoo in some modes, and `make soak` in all but those compiled."""

SPEECH = (
    "voxtral",
    "audioflamingo3",
    "glmasr",
    "qwen3_asr",
    "fun_asr_nano",
    "granite_speech",
    "granite_speech_plus",
)
"""Families whose only medium is audio, and whose splits are made by signature."""
