"""Families of 2026 whose images and videos are patches with a grid."""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny_family import END, HIDDEN, START, VIDEO, Call
from tiny_grids import QWEN2_5_VISION, ROPE

from tiny_zoo.grid_media import WHOLE, frame_videos, glm_videos, grid_images, grid_videos
from tiny_zoo.grid_model import GLM_VISION, grid_model
from tiny_zoo.zoo_model import Medium, ZooModel


def _merged(medium: Medium, size_name: str, sizes: tuple[int, ...]) -> Medium:
    """Items with a merge size each: a square of patches with this side is one row of features."""

    def make(seed: int) -> Call:
        return medium.make(seed) | {size_name: torch.tensor([sizes[seed % len(sizes)]])}

    return replace(medium, make=make)


def _kept(calls: list[Call]) -> Call:
    """The mask of the rows of videos that `forward` keeps: all but the first row of each video."""
    rows = [int(call["video_grid_thw"].prod() // call["video_merge_sizes"] ** 2) for call in calls]
    return {"video_compression_mask": torch.cat([torch.arange(length) > 0 for length in rows])}


def _kept_tokens(length: int) -> list[int]:
    return [START, *[VIDEO] * (length - 1), END]


GRIDS_MORE: list[ZooModel] = [
    grid_model(
        "video_llama_3",
        "VideoLlama3",
        {
            "image": _merged(grid_images(48), "image_merge_sizes", (1, 2, 1)),
            "video": replace(
                _merged(grid_videos(48), "video_merge_sizes", (2, 1, 2)), tokens=_kept_tokens, extras=_kept
            ),
        },
        has_types=False,
    ),
    grid_model(
        "exaone4_5",
        "Exaone4_5_",
        {"image": grid_images(WHOLE), "video": grid_videos(WHOLE)},
        has_types=False,
        vision_config=QWEN2_5_VISION,
        text_config={"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8},
    ),
    grid_model(
        "hyperclovax_vision_v2",
        "HyperCLOVAXVisionV2",
        {"image": grid_images(WHOLE), "video": grid_videos(WHOLE)},
        has_types=False,
        vision_config=QWEN2_5_VISION,
    ),
    grid_model(
        "lfm3_vl",
        "Lfm3Vl",
        {"image": grid_images(WHOLE), "video": frame_videos(WHOLE)},
        has_types=False,
        projector_hidden_size=48,
        vision_config={"layer_types": ["conv", "full_attention"]},
        text_config={"layer_types": ["conv", "full_attention"]},
    ),
    grid_model(
        "minimax_m3_vl",
        "MiniMaxM3Sparse",
        {"image": grid_images(WHOLE), "video": frame_videos(WHOLE)},
        has_types=False,
        config="MiniMaxM3VL",
        projector_hidden_size=48,
        merged_hidden_size=4 * HIDDEN,
        text_config={"dense_intermediate_size": 48, "shared_intermediate_size": 16, "rotary_dim": 8},
    ),
    grid_model(
        "muse_glimmer",
        "MuseGlimmer",
        {"image": grid_images(WHOLE), "video": frame_videos(WHOLE)},
        has_types=False,
        out_hidden_size=4 * HIDDEN,
        projector_hidden_size=48,
        vision_config={"pos_emb_height": 2, "pos_emb_width": 2},
        text_config={"sliding_window": 16},
    ),
    grid_model(
        "hunyuan_vl",
        "HunYuanVL",
        {"image": grid_images(48)},
        vision_config={"max_image_size": 32},
        text_config={"rope_parameters": ROPE | {"mrope_section": [2, 2, 2, 2]}},
    ),
    grid_model(
        "glm5_next",
        "Glm5Next",
        {"image": grid_images(WHOLE), "video": glm_videos(WHOLE)},
        vision_config=GLM_VISION | {"projection_intermediate_size": 48},
        text_config={
            "num_key_value_heads": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "v_head_dim": 16,
            "qk_nope_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "indexer_types": ["full", "full"],
            "index_topk": 16,
            "index_kpool": 4,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "head_dim": 0,
            "linear_head_dim": 16,
            "linear_num_heads": 2,
        },
    ),
    grid_model(
        "inkling2",
        "Inkling2",
        {"image": grid_images(8, 8, 3)},
        has_types=False,
        vision_config={"text_hidden_size": HIDDEN, "posemb_grid_size": 4, "projection_hidden_dim": 48},
        text_config={
            "layer_types": ["hybrid_sliding", "hybrid"],
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 1,
            "swa_head_dim": 16,
            "sliding_window_size": 16,
            "rel_extent": 16,
            "d_rel": 4,
        },
    ),
]
