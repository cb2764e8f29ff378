"""Qwen2-VL, Qwen2.5-VL, and Qwen3-VL with three deepstack levels, dense and with experts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine_runner.tiny_models.family import HIDDEN, MAX_PIXELS, Family
from engine_runner.tiny_models.folder import change_json

SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
VISION = {"depth": 4, "num_heads": 4, "hidden_size": 128}
DEEPSTACK = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 576, "patch_size": 16}
WINDOWS = {"fullatt_block_indexes": [1, 3], "window_size": 112, "patch_size": 14}


def config(name: str, vision: dict[str, Any], text: dict[str, Any], family: Family) -> Any:
    import transformers

    return getattr(transformers, name)(
        text_config=family.text_config(**text),
        vision_config=VISION | vision,
        vision_start_token_id=family.token("<|vision_start|>"),
        vision_end_token_id=family.token("<|vision_end|>"),
        image_token_id=family.token("<|image_pad|>"),
        video_token_id=family.token("<|video_pad|>"),
        tie_word_embeddings=False,
    )


def rope(*mrope_section: int) -> dict[str, Any]:
    sections = list(mrope_section)
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}}


def write_processors(processor: str, patch_size: int, image: str, video: str, folder: Path) -> None:
    common: dict[str, Any] = {
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": processor,
        "size": {"shortest_edge": 64 * 64, "longest_edge": 512 * 512},
    }
    change_json(folder / "preprocessor_config.json", **common, image_processor_type=image)
    change_json(folder / "video_preprocessor_config.json", **common, video_processor_type=video)


def published_experts(name: str, weight: Any) -> tuple[str, Any]:
    """The published experts have their columns in the other order of dimensions."""
    return name, weight.transpose(1, 2).contiguous() if ".experts." in name else weight


def qwen(
    name: str, architecture: str, configuration: Callable[[Family], Any], *processors: Any, **own: Any
) -> Family:
    return Family(
        name,
        architecture=architecture,
        placeholder="<|vision_start|><|image_pad|><|vision_end|>",
        special=SPECIAL,
        config=configuration,
        processors=partial(write_processors, *processors),
        options={"mm_processor_kwargs": {"size": {"shortest_edge": 64 * 64, "longest_edge": MAX_PIXELS}}},
        **own,
    )


SECOND = ("Qwen2VLImageProcessor", "Qwen2VLVideoProcessor")
THIRD = ("Qwen3VLProcessor", 16, "Qwen2VLImageProcessorFast", "Qwen3VLVideoProcessor")
OUT = {"intermediate_size": 256, "out_hidden_size": HIDDEN}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
QWENS = (
    qwen(
        "qwen2",
        "Qwen2VLForConditionalGeneration",
        # Here, `hidden_size` is the width of the rows.
        partial(config, "Qwen2VLConfig", {"embed_dim": 128, "mlp_ratio": 2, "patch_size": 14}, rope(4, 6, 6)),
        *("Qwen2VLProcessor", 14, *SECOND),
        module="qwen2_vl",
    ),
    qwen(
        "qwen2_5",
        "Qwen2_5_VLForConditionalGeneration",
        partial(config, "Qwen2_5_VLConfig", WINDOWS | OUT, rope(4, 6, 6)),
        *("Qwen2_5_VLProcessor", 14, *SECOND),
        module="qwen2_5_vl",
    ),
    qwen(
        "qwen3",
        "Qwen3VLForConditionalGeneration",
        partial(config, "Qwen3VLConfig", DEEPSTACK | OUT, rope(6, 5, 5)),
        *THIRD,
        module="qwen3_vl",
        columns=4 * HIDDEN,
        has_other_weights=True,
    ),
    qwen(
        "qwen3_moe",
        "Qwen3VLMoeForConditionalGeneration",
        partial(config, "Qwen3VLMoeConfig", DEEPSTACK | OUT, rope(6, 5, 5) | EXPERTS),
        *THIRD,
        module="qwen3_vl_moe",
        published=published_experts,
        columns=4 * HIDDEN,
    ),
)
