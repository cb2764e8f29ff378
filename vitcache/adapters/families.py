"""The model families that `attach` knows by name: how their calls are split, and where their towers are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vitcache.adapters.splits.call_parts import Split
from vitcache.adapters.splits.grids import split_by_grid
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


_GRIDS = Family("visual", {"image": split_by_grid, "video": split_by_grid})
_FRAMES = replace(_GRIDS, videos_are_frames=True)

GRID_FAMILIES = {
    "qwen2_vl": _GRIDS,
    "qwen2_5_vl": replace(_GRIDS, videos_have_seconds=True),
    "qwen3_vl": _FRAMES,
    "qwen3_vl_moe": _FRAMES,
    "qwen3_5": _FRAMES,
    "qwen3_5_moe": _FRAMES,
    "glm4v": replace(_FRAMES, videos_have_image_tokens=True),
}
"""The families whose images and videos are patches with a grid, by `config.model_type`."""

_MORE_GRIDS: dict[str, Family] = {}

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
