"""`image_items` and `video_items`: the items of a prompt, from the outputs of a model's processor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from vitcache.adapters.families import Family
from vitcache.adapters.model_pipeline import find_grid_family
from vitcache.adapters.processor_outputs import check_keys, read_grids, read_seconds, split_features
from vitcache.adapters.prompt_ids import check_prompt
from vitcache.adapters.token_types import IMAGE, VIDEO, token_types
from vitcache.pipeline.items import Item
from vitcache.placement.spans import Span, spans_from_token_ids


def image_items(
    model: nn.Module,
    input_ids: Tensor,
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    *,
    keys: Sequence[bytes] | None = None,
    complete_keys: bool = False,
) -> list[Item]:
    """Return one `Item` per image of a prompt, from the outputs of the model's processor.

    Parameters
    ----------
    model
        A model of one of the families that `vision_pipeline` supports.
    input_ids
        Token ids of the prompt, ``(T,)`` or ``(1, T)``; `config.image_token_id` at the tokens of images. The
        prompt may have videos, too: `video_items` makes their items.
    pixel_values
        Patches of all images, ``(sum of t * h * w, width)``. The items refer to views of this tensor.
    image_grid_thw
        t, h and w of each image, in patches: ``(images, 3)``, ints.
    keys
        32 bytes per image. The pipeline folds its namespace into them. None: the pipeline hashes the patches.
    complete_keys
        True: the keys name the model and its weights, too, and the pipeline uses them unchanged; see `Item`.

    Raises
    ------
    TypeError
        If `model` is of another family, `input_ids` is not a tensor of ints, `pixel_values` is not a tensor,
        `image_grid_thw` is not a tensor of ints, a key is not bytes, or `complete_keys` is not a bool.
    ValueError
        If `input_ids` is more than one prompt; if the number of patches, keys or tokens of images does not
        agree with `image_grid_thw`; if a grid does not have three positive numbers, or its h and w are not
        multiples of the tower's `spatial_merge_size`; if a key does not have 32 bytes; or if `complete_keys`
        is true and `keys` is None.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor for a prompt of 11 tokens.
    Four of the tokens are one image.

    >>> from vitcache.adapters.transformers import image_items
    >>> names = "input_ids", "pixel_values", "image_grid_thw"
    >>> [item] = image_items(model, *(inputs[name] for name in names))
    >>> item.spans, item.num_rows
    ((Span(start=3, length=4, source_start=0),), 4)
    """
    base, family = find_grid_family(model)
    grids = read_grids("image_grid_thw", image_grid_thw, base.config)
    features = split_features("pixel_values", pixel_values, "image_grid_thw", grids)
    spans, num_rows = _placements(base, family, IMAGE, input_ids, grids)
    each_key = check_keys("image", keys, complete_keys, len(grids))
    return [
        Item(feature, places, num_rows=rows, key=key, complete_key=complete_keys, grid_thw=grid)
        for feature, places, rows, key, grid in zip(features, spans, num_rows, each_key, grids, strict=True)
    ]


def video_items(
    model: nn.Module,
    input_ids: Tensor,
    pixel_values_videos: Tensor,
    video_grid_thw: Tensor,
    *,
    second_per_grid_ts: Sequence[float] | Tensor | None = None,
    keys: Sequence[bytes] | None = None,
    complete_keys: bool = False,
) -> list[Item]:
    """Return one `Item` per video of a prompt, from the outputs of the model's processor.

    An item has one span per run of tokens of its video. Qwen2-VL and Qwen2.5-VL have one run per video, and
    the other families one run per frame (one temporal patch), with tokens of timestamps between the frames.

    Parameters
    ----------
    model
        A model of one of the families that `vision_pipeline` supports.
    input_ids
        Token ids of the prompt, ``(T,)`` or ``(1, T)``. The tokens of videos have `config.video_token_id`. In
        GLM they have `config.image_token_id`, and are between `config.video_start_token_id` and
        `config.video_end_token_id`. The prompt may have images, too: `image_items` makes their items.
    pixel_values_videos
        Patches of all videos, ``(sum of t * h * w, width)``. The items refer to views of this tensor.
    video_grid_thw
        t, h and w of each video, in patches: ``(videos, 3)``, ints.
    second_per_grid_ts
        Seconds per temporal patch, one number per video, for Qwen2.5-VL only: the positions of the tokens
        depend on them. None: 1 second, as in the stock forward.
    keys
        32 bytes per video. The pipeline folds its namespace into them. None: the pipeline hashes the patches,
        the grid and the seconds.
    complete_keys
        True: the keys name the model and its weights, too, and the pipeline uses them unchanged; see `Item`.

    Raises
    ------
    TypeError
        If `model` is of another family, `input_ids` is not a tensor of ints, `pixel_values_videos` is not a
        tensor, `video_grid_thw` is not a tensor of ints, an entry of `second_per_grid_ts` is not a number or
        is a bool, a key is not bytes, or `complete_keys` is not a bool.
    ValueError
        If `input_ids` is more than one prompt; if the number of patches, keys, seconds or tokens of videos
        does not agree with `video_grid_thw`; if a grid does not have three positive numbers, or its h and w
        are not multiples of the tower's `spatial_merge_size`; if an entry of `second_per_grid_ts` is negative
        or not finite; if `second_per_grid_ts` is given and the family is not Qwen2.5-VL; if a key does not
        have 32 bytes; or if `complete_keys` is true and `keys` is None.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. A video of two frames, each of 4 x 4 patches, has 8 tokens: its
    vision tower merges 2 x 2 patches to one row.

    >>> import torch
    >>> from vitcache.adapters.transformers import video_items
    >>> input_ids = torch.tensor([1, *[model.config.video_token_id] * 8, 2])
    >>> patches, grids = torch.zeros(32, 96), torch.tensor([[2, 4, 4]])
    >>> [item] = video_items(model, input_ids, patches, grids, second_per_grid_ts=[0.5])
    >>> item.spans, item.encoder_kwargs
    ((Span(start=1, length=8, source_start=0),), {'video_grid_thw': [2, 4, 4], 'second_per_grid_t': 0.5})
    """
    base, family = find_grid_family(model)
    grids = read_grids("video_grid_thw", video_grid_thw, base.config)
    features = split_features("pixel_values_videos", pixel_values_videos, "video_grid_thw", grids)
    spans, num_rows = _placements(base, family, VIDEO, input_ids, grids)
    each_key = check_keys("video", keys, complete_keys, len(grids))
    options: list[dict[str, Any]] = [{"video_grid_thw": grid} for grid in grids]
    if second_per_grid_ts is not None:
        seconds = read_seconds(base, family, second_per_grid_ts, len(grids))
        for option, value in zip(options, seconds, strict=True):
            option["second_per_grid_t"] = value
    return [
        Item(feature, places, num_rows=rows, key=key, complete_key=complete_keys, **option)
        for feature, places, rows, key, option in zip(
            features, spans, num_rows, each_key, options, strict=True
        )
    ]


def _placements(
    base: Any, family: Family, kind: int, input_ids: Any, grids: list[list[int]]
) -> tuple[list[list[Span]], list[int]]:
    """Return the spans and the number of rows of each item of a kind, IMAGE or VIDEO."""
    check_prompt(input_ids)
    ids = input_ids.numpy(force=True).reshape(-1)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"input_ids must be a tensor of ints, got {input_ids.dtype}")
    config = base.config
    num_rows = [math.prod(grid) // config.vision_config.spatial_merge_size**2 for grid in grids]
    types = token_types(ids, config)
    found = int(np.count_nonzero(types == kind))
    if found != sum(num_rows):
        place, token_id = "", config.video_token_id if kind == VIDEO else config.image_token_id
        if family.videos_have_image_tokens:
            token_id, place = config.image_token_id, f" {'in' if kind == VIDEO else 'outside of'} videos"
        raise ValueError(
            f"the prompt has {found} tokens with id {token_id}{place}, "
            f"the {len(grids)} items have {sum(num_rows)} rows"
        )
    return spans_from_token_ids(types, kind, num_rows), num_rows
