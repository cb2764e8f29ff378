"""Models with random weights: Qwen3-VL in two sizes, its image processor, and models of other families."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLVisionModel,
)


@dataclass(frozen=True)
class Size:
    """The shape of a model: its two configurations, its dtype, and the size of its images in pixels.

    An image is split into patches of `patch_size` x `patch_size` pixels. Four patches become one row.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    special_tokens: dict[str, Any]
    dtype: torch.dtype
    min_pixels: int
    max_pixels: int
    patch_size: int = 16


# Special tokens of a model whose text tokens are bytes.
AFTER_BYTES = {
    "vision_start_token_id": 256,
    "vision_end_token_id": 257,
    "image_token_id": 258,
    "video_token_id": 259,
}

SIZES = {
    # A conversation takes seconds on two cores, and the time to encode an image is still visible.
    "tiny": Size(
        text={
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 272,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5]},
        },
        vision={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_heads": 4,
            "out_hidden_size": 128,
            "deepstack_visual_indexes": [0, 1, 2],
            "num_position_embeddings": 576,
        },
        special_tokens=AFTER_BYTES,
        dtype=torch.float32,
        min_pixels=256 * 256,
        max_pixels=352 * 352,
    ),
    # The shape of Qwen3-VL-8B-Instruct; images are resized to the area of a 1280x720 screen.
    "8b": Size(
        text={
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 262144,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
        },
        vision={
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 4096,
            "deepstack_visual_indexes": [8, 16, 24],
            "num_position_embeddings": 2304,
        },
        special_tokens={
            "vision_start_token_id": 151652,
            "vision_end_token_id": 151653,
            "image_token_id": 151655,
            "video_token_id": 151656,
        },
        dtype=torch.bfloat16,
        min_pixels=1280 * 720,
        max_pixels=1280 * 736,
    ),
}


def build_model(size: Size, device: torch.device) -> Any:
    """Return a stock ``Qwen3VLForConditionalGeneration`` on `device`, in evaluation mode.

    The weights are the same in every call. The caller's random state does not change.
    """
    return random_model(make_config(size), size.dtype, device)


def random_model(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Return the stock model of this configuration, as `build_model`.

    Weights that the stock class initialises with zeros, such as Gemma 3's projector, are random, too:
    otherwise images would not change the logits.
    """
    return _build(AutoModelForImageTextToText.from_config, config, dtype, device)


def build_tower(size: Size, device: torch.device) -> Any:
    """Return only the vision tower, with random weights that are the same in every call."""
    return _build(Qwen3VLVisionModel._from_config, make_config(size).vision_config, size.dtype, device)


def make_config(size: Size) -> Qwen3VLConfig:
    """Return the configuration of the model."""
    vision = {**size.vision, "patch_size": size.patch_size}
    return Qwen3VLConfig(text_config=size.text, vision_config=vision, **size.special_tokens)


def _build(from_config: Callable[..., Any], config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), device:
        torch.manual_seed(0)
        model = from_config(config, dtype=dtype, attn_implementation="sdpa")
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()


def share_weights(model: Any) -> Any:
    """Return a copy of `model`: its modules are new, its weights are the same tensors."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, weights)


def build_processor(size: Size) -> Qwen2VLImageProcessorPil:
    """Return Qwen3-VL's image processor: the settings of the checkpoints, except for the size of images."""
    return Qwen2VLImageProcessorPil(**processor_settings(size))


def processor_settings(size: Size, patch_size: int | None = None) -> dict[str, Any]:
    """Return the settings of the image processor of a model of this size; `patch_size` is that of `size`."""
    return {
        "patch_size": size.patch_size if patch_size is None else patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": size.min_pixels, "longest_edge": size.max_pixels},
    }
