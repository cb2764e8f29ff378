"""The model families of the demo: each one has a tiny configuration, and an image processor that fits it."""

from __future__ import annotations

from typing import Any

from vitcache.demo.family import Family
from vitcache.demo.model import SIZES, make_config, processor_settings

_TEXT = {name: value for name, value in SIZES["tiny"].text.items() if name != "rope_parameters"}
_TEXT |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TOWER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 14,
}
_GRID_TOWER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "depth": 4,
    "num_heads": 4,
    "out_hidden_size": 128,
}
_GRIDS = ("pixel_values", "image_grid_thw")
_SQUARE = {"height": 224, "width": 224}
# LLaVA-OneVision encodes an image, and each of its four quarters or two halves, as squares of this side.
_TILE = 112
_TILINGS = [[_TILE, 2 * _TILE], [2 * _TILE, _TILE], [2 * _TILE, 2 * _TILE]]


def _rope(*sections: int, **options: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **options}


def _qwen3_vl(name: str) -> Family:
    size = SIZES[name]
    config = make_config(size).to_dict()
    settings = processor_settings(size)
    title = f"Qwen3-VL ({name})"
    return Family(title, "Qwen3VLConfig", config, "Qwen2VLImageProcessorPil", settings, _GRIDS, size.dtype)


FAMILIES: dict[str, Family] = {
    "qwen3_vl": _qwen3_vl("tiny"),
    "qwen2_5_vl": Family(
        "Qwen2.5-VL",
        "Qwen2_5_VLConfig",
        {
            "text_config": {**_TEXT, "rope_parameters": _rope(4, 6, 6)},
            "vision_config": {**_GRID_TOWER, "fullatt_block_indexes": [1, 3]},
        },
        "Qwen2VLImageProcessorPil",
        processor_settings(SIZES["tiny"], patch_size=14),
        _GRIDS,
    ),
    "qwen3_5": Family(
        "Qwen3.5",
        "Qwen3_5Config",
        {
            "text_config": {
                **_TEXT,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 32,
                "linear_value_head_dim": 32,
                "rope_parameters": _rope(2, 1, 1, partial_rotary_factor=0.25),
            },
            "vision_config": _GRID_TOWER,
        },
        "Qwen2VLImageProcessorPil",
        processor_settings(SIZES["tiny"]),
        _GRIDS,
    ),
    "gemma3": Family(
        "Gemma 3",
        "Gemma3Config",
        {
            "text_config": {**_TEXT, "sliding_window": 256},
            "vision_config": _TOWER,
            "mm_tokens_per_image": 64,
        },
        "Gemma3ImageProcessorPil",
        {"size": _SQUARE},
    ),
    "gemma4": Family(
        "Gemma 4",
        "Gemma4Config",
        {
            "text_config": {
                **_TEXT,
                "global_head_dim": 32,
                "hidden_size_per_layer_input": 0,
                "use_bidirectional_attention": "vision",
            },
            "vision_config": {**_TOWER, "num_key_value_heads": 4, "head_dim": 32, "patch_size": 16},
            "audio_config": None,
            "audio_token_id": 260,
        },
        "Gemma4ImageProcessorPil",
        {"max_soft_tokens": 70},
        ("pixel_values", "image_position_ids"),
    ),
    "llava": Family(
        "LLaVA",
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **_TEXT},
            "vision_config": {"model_type": "clip_vision_model", **_TOWER},
        },
        "CLIPImageProcessorPil",
        {"size": {"shortest_edge": 224}, "crop_size": _SQUARE},
    ),
    "llava_onevision": Family(
        "LLaVA-OneVision",
        "LlavaOnevisionConfig",
        {
            "text_config": {"model_type": "qwen2", **_TEXT},
            "vision_config": {"model_type": "siglip_vision_model", **_TOWER, "image_size": _TILE},
            "image_grid_pinpoints": _TILINGS,
        },
        "LlavaOnevisionImageProcessorPil",
        {"size": {"height": _TILE, "width": _TILE}, "image_grid_pinpoints": _TILINGS},
        ("pixel_values", "image_sizes", "batch_num_images"),
    ),
    "internvl": Family(
        "InternVL",
        "InternVLConfig",
        {
            "text_config": {"model_type": "qwen2", **_TEXT},
            "vision_config": {**_TOWER, "image_size": [224, 224], "patch_size": [14, 14]},
        },
        "GotOcr2ImageProcessorPil",
        {"size": _SQUARE},
    ),
    "mistral3": Family(
        "Mistral 3",
        "Mistral3Config",
        {
            "text_config": {"model_type": "mistral", **_TEXT},
            "vision_config": {"model_type": "pixtral", **_TOWER, "image_size": 336, "head_dim": 32},
            "spatial_merge_size": 2,
        },
        "PixtralImageProcessorPil",
        {"size": {"longest_edge": 336}, "patch_size": {"height": 28, "width": 28}},
        ("pixel_values", "image_sizes"),
        row_pixels=28,
    ),
    "idefics3": Family(
        "Idefics3",
        "Idefics3Config",
        {
            "text_config": {"model_type": "llama", **_TEXT},
            "vision_config": _TOWER,
            "scale_factor": 2,
        },
        "Idefics3ImageProcessorPil",
        {
            "size": {"longest_edge": 224},
            "max_image_size": {"longest_edge": 224},
            "do_image_splitting": False,
        },
        ("pixel_values", "pixel_attention_mask"),
        images_in=1,
    ),
}
"""The families by name, with tiny models: their calls that encode images have different forms."""

LARGE = {"qwen3_vl": _qwen3_vl("8b")}
"""The families that also have the shape of a model with 8 billion parameters."""
