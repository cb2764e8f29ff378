"""The model families that `attach` knows by name: how their calls are split, and where their towers are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vitcache.adapters.splits.call_parts import Split
from vitcache.adapters.splits.clips import (
    split_by_frame_mask,
    split_by_last_frame,
    split_by_padding_mask,
    split_by_sample_length,
    split_by_sample_mask,
    split_by_stft_mask,
)
from vitcache.adapters.splits.crops import split_by_crop
from vitcache.adapters.splits.frames import split_by_frames
from vitcache.adapters.splits.grids import split_by_grid, split_by_grid_and_merge
from vitcache.adapters.splits.leading_dim import split_by_index, split_by_leading_dim, split_by_stack
from vitcache.adapters.splits.navit import split_navit
from vitcache.adapters.splits.nested import split_nested, split_nested_sizes, split_nested_tiles
from vitcache.adapters.splits.pooling import split_by_pooling
from vitcache.adapters.splits.tiles import split_by_image_size
from vitcache.adapters.splits.views import split_views


@dataclass(frozen=True)
class Family:
    """The properties in which model families differ.

    Attributes
    ----------
    tower
        The attribute of the vision tower in the module that owns the stock methods.
    splits
        A `Split` per modality: "image", "video" or "audio".
    has_name
        Whether the tables of this module have the family. Then `row_width` is known.
    unverified
        The modalities whose splits no test has verified. The first call with several items compares them with
        the stock method.
    row_width
        Returns the elements of a row for a config. None: hidden * (1 + deepstack levels).
    audio_tower
        The attribute of the audio tower.
    videos_have_image_tokens
        The tokens of videos have `config.image_token_id`, too; `config.video_start_token_id` and
        `config.video_end_token_id` surround each video.
    videos_are_frames
        Each frame of a video is a run of tokens of its own, between other tokens such as its time.
    videos_have_seconds
        The positions of a video's tokens depend on `second_per_grid_ts`.
    """

    tower: str
    splits: dict[str, Split]
    videos_have_image_tokens: bool = False
    videos_are_frames: bool = False
    videos_have_seconds: bool = False
    unverified: frozenset[str] = frozenset()
    has_name: bool = True
    row_width: Callable[[Any], int] | None = None
    audio_tower: str = "audio_tower"


def _with_audio(family: Family, split: Split) -> Family:
    return replace(family, splits=family.splits | {"audio": split})


_GRIDS = Family("visual", {"image": split_by_grid, "video": split_by_grid})
_FRAMES = replace(_GRIDS, videos_are_frames=True)
_GLM = replace(_FRAMES, videos_have_image_tokens=True)

GRID_FAMILIES = {
    "qwen2_vl": _GRIDS,
    "qwen2_5_vl": replace(_GRIDS, videos_have_seconds=True),
    "qwen3_vl": _FRAMES,
    "qwen3_vl_moe": _FRAMES,
    "qwen3_5": _FRAMES,
    "qwen3_5_moe": _FRAMES,
    "cosmos3_omni": _FRAMES,
    "cosmos3_edge": _FRAMES,
    "cohere_compass": _FRAMES,
    "qwen4_exp": _FRAMES,
    "glm4v": _GLM,
    "glm4v_moe": _GLM,
    "glm46v": _GLM,
    "glmga": _GLM,
    "glm_ocr": _GLM,
}
"""The families that `vision_pipeline` runs, by `config.model_type`.

Their images and videos are patches with a grid.
"""

_GRIDS_OF_TOWER = replace(_GRIDS, tower="vision_tower")
_OMNI = _with_audio(_GRIDS, split_by_frame_mask)

# Images of these families are patches with a grid, too. `vision_pipeline` does not run them.
_GRIDS_FOR_ATTACH = {
    "kimi_k25": _GRIDS_OF_TOWER,
    "paddleocr_vl": _GRIDS,
    "ernie4_5_vl_moe": _GRIDS_OF_TOWER,
    "qwen2_5_omni_thinker": _OMNI,
    "qwen3_omni_moe_thinker": _OMNI,
    "exaone4_5": _GRIDS,
    "hyperclovax_vision_v2": replace(_GRIDS, tower="vision_model"),
    "lfm3_vl": _GRIDS_OF_TOWER,
    "minimax_m3_vl": _GRIDS_OF_TOWER,
    "muse_glimmer": _GRIDS_OF_TOWER,
    "muse_spark": _with_audio(_GRIDS_OF_TOWER, split_by_sample_mask),
    "dots3_note": _with_audio(_GRIDS_OF_TOWER, split_by_sample_length),
    "video_llama_3": Family(
        "vision_model", {"image": split_by_grid_and_merge, "video": split_by_grid_and_merge}
    ),
    "hunyuan_vl": _GRIDS_OF_TOWER,
    "glm5_next": _GRIDS,
    "inkling2": _GRIDS_OF_TOWER,
    "nemotron_h_omni": Family("vision_model", {"image": split_by_grid, "audio": split_by_stft_mask}),
}

_SQUARE = Family("vision_tower", {"image": split_by_leading_dim})
_CROPS = Family("vision_tower", {"image": split_by_crop})
_TILES = Family("vision_tower", {"image": split_by_image_size, "video": split_by_leading_dim})


def _granite4_vision_row(config: Any) -> int:
    """The elements of a row: the features for each layer of the language model that reads features."""
    layers = len(config.deepstack_layer_map) + len(config.spatial_target_layers)
    return int(config.text_config.hidden_size) * layers


# An image of these families is an index, a crop or the tiles of the pixels.
_IMAGES = {
    "llava_onevision": _TILES,
    "internvl": _SQUARE,
    "gemma3": _SQUARE,
    "llava": _CROPS,
    "mistral3": _CROPS,
    "mistral_large4": _CROPS,
    "lighton_ocr": replace(_CROPS, tower="vision_encoder"),
    "llava_next": _TILES,
    "llava_next_video": _TILES,
    "granite4_vision": replace(_TILES, row_width=_granite4_vision_row),
    "paligemma": _SQUARE,
    "cohere2_vision": _SQUARE,
    "aya_vision": _SQUARE,
    "janus": replace(_SQUARE, tower="vision_model"),
    "got_ocr2": _SQUARE,
    "pp_chart2table": _SQUARE,
    "vipllava": _SQUARE,
    "qianfan_ocr": _SQUARE,
    "deepseek_vl": replace(_SQUARE, tower="vision_model"),
    "fast_vlm": _SQUARE,
    "florence2": _SQUARE,
    "shieldgemma2": _SQUARE,
    "t5gemma2_encoder": _SQUARE,
    "video_llava": Family("image_tower", {"image": split_by_leading_dim, "video": split_by_stack}),
    "perception_lm": replace(_SQUARE, splits={"image": split_by_stack}),
    "ovis2": _SQUARE,
    "llama4": Family(
        "vision_model",
        {"image": split_by_leading_dim},
        row_width=lambda config: int(config.vision_config.vision_output_dim),  # the projector's input
    ),
    "fuyu": Family("vision_embed_tokens", {"image": split_by_leading_dim}),
}

_NAVIT = Family("vision_tower", {"image": split_navit, "video": split_navit})

_PATCH_ROWS = {
    "image": split_by_index("image_position_ids"),
    "video": split_by_frames,
    "audio": split_by_last_frame,
}

# The pixels of these families have companions: masks, positions, sizes or a second resolution.
_WITH_COMPANIONS = {
    "gemma3n": Family("vision_tower", {"image": split_by_leading_dim, "audio": split_by_padding_mask}),
    "gemma4": Family("vision_tower", _PATCH_ROWS),
    "gemma4_unified": Family("embed_vision", _PATCH_ROWS, audio_tower="embed_audio"),
    "idefics2": Family("vision_model", {"image": split_nested_sizes}),
    "idefics3": Family("vision_model", {"image": split_nested}),
    "smolvlm": Family("vision_model", {"image": split_nested}),
    "minicpmv4_6": _NAVIT,
    "minicpmv4_7": _NAVIT,
    "minicpm_ocr": _NAVIT,
    "lfm2_vl": Family("vision_tower", {"image": split_by_index("spatial_shapes", "pixel_attention_mask")}),
    "aria": Family("vision_tower", {"image": split_by_index("pixel_mask")}),
    "deepseek_vl_hybrid": Family("vision_model", {"image": split_by_index("high_res_pixel_values")}),
    "molmo2": Family("vision_tower", {"image": split_by_pooling, "video": split_by_pooling}),
    "diffusion_gemma": Family("vision_tower", {"image": split_by_index("image_position_ids")}),
    "granite_docling": Family("vision_model", {"image": split_nested_tiles}),
    "deepseek_ocr2": Family("vision_tower", {"image": split_views}),
    "step3p7": Family("vision_model", {"image": split_views}),
    "unlimited_ocr": Family("vision_tower", {"image": split_views}),
}

FAMILIES = GRID_FAMILIES | _GRIDS_FOR_ATTACH | _IMAGES | _WITH_COMPANIONS
"""All families, by `config.model_type`."""
