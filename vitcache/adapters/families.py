"""The model families that `attach` knows by name: how their calls are split, and where their towers are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vitcache.adapters.splits.call_parts import Split
from vitcache.adapters.splits.clips import (
    split_by_frame_mask,
    split_by_sample_length,
    split_by_sample_mask,
    split_by_stft_mask,
)
from vitcache.adapters.splits.grids import split_by_grid, split_by_grid_and_merge
from vitcache.adapters.splits.leading_dim import split_by_leading_dim
from vitcache.adapters.splits.tiles import split_by_image_size


@dataclass(frozen=True)
class Family:
    """The properties in which model families differ.

    Attributes
    ----------
    tower
        The attribute of the vision tower in the module that owns the stock methods.
    splits
        A `Split` per modality: "image", "video" or "audio".
    unproved
        The modalities whose splits no test has proved. The first call with several items compares them with
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
    unproved: frozenset[str] = frozenset()
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
    "glm_ocr": _GLM,
}
"""The families whose images and videos are patches with a grid, by `config.model_type`."""

_GRIDS_OF_TOWER = replace(_GRIDS, tower="vision_tower")
_OMNI = _with_audio(_GRIDS, split_by_frame_mask)

_MORE_GRIDS = {
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
    "glmga": _GRIDS,
}

_SQUARES = {
    "llava_onevision": Family("vision_tower", {"image": split_by_image_size, "video": split_by_leading_dim}),
    "internvl": Family("vision_tower", {"image": split_by_leading_dim}),
    "gemma3": Family("vision_tower", {"image": split_by_leading_dim}),
}

_OTHERS: dict[str, Family] = {}

FAMILIES = GRID_FAMILIES | _MORE_GRIDS | _SQUARES | _OTHERS
"""All families, by `config.model_type`."""

REFUSED: dict[str, str] = {}
"""The reasons why models cannot be attached, by `config.model_type`."""
