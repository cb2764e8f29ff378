"""A `VisionPipeline` over the vision tower of a transformers model, and its items."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from vitcache.adapters.families import Family, split_by_grid
from vitcache.adapters.model_outputs import image_rows
from vitcache.adapters.vision_tower import cache_for, find_family, namespace_for
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pipeline.encoder_runner import Encode
from vitcache.pipeline.items import Item
from vitcache.pipeline.vision_pipeline import VisionPipeline
from vitcache.placement.spans import spans_from_token_ids


def vision_pipeline(
    model: nn.Module,
    cache: EmbeddingCache | None = None,
    *,
    namespace: str | None = None,
    device_bytes: int | None = None,
    **options: Any,
) -> VisionPipeline:
    """Return a pipeline that encodes images by `model.get_image_features`, several in one call.

    Parameters
    ----------
    model
        A Qwen2.5-VL or Qwen3-VL, in eval mode.
    cache, namespace, device_bytes
        As in `attach`. After the weights changed call `cache.advance_epoch()`.
    **options
        Of `VisionPipeline`: `ring`, `max_rows_per_encode`, `agree`, `feature_dtype`, `stream`, `shadow`.

    Raises
    ------
    TypeError
        If the model is of another family.
    ValueError
        If `cache` holds rows of another width or dtype, or comes with `device_bytes`.

    Notes
    -----
    Its items come from `image_items`. An image encoded beside others may differ in the last bits from the
    same image alone; with ``max_rows_per_encode=1`` each is encoded alone. The stock towers read their
    grids on the host, so each call of theirs waits for the device.
    """
    base, family = find_grid_family(model)
    tower = getattr(base, family.tower)
    cache = cache_for(base, tower, cache, device_bytes)
    encode = image_encoder(model)
    return VisionPipeline(encode, cache, namespace=namespace_for(base, tower, namespace).digest(), **options)


def image_encoder(model: nn.Module) -> Encode:
    """Return an `encode` for pipelines: the images of `image_items`, by `model.get_image_features`.

    Raises
    ------
    TypeError
        If the model is of another family.
    """
    base, _ = find_grid_family(model)

    @torch.no_grad()
    def encode(features: list[Tensor], items: list[Item]) -> Tensor:
        pixels = features[0] if len(features) == 1 else torch.cat(features)
        grids = torch.tensor([item.encoder_kwargs["grid_thw"] for item in items], device=pixels.device)
        return image_rows(base.get_image_features(pixels, grids, return_dict=True))

    return encode


def image_items(
    model: nn.Module,
    input_ids: Tensor,
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    *,
    keys: Sequence[bytes] | None = None,
) -> list[Item]:
    """Return the images of one prompt, as the model's processor hands them over, as items.

    Parameters
    ----------
    model
        A Qwen2.5-VL or Qwen3-VL.
    input_ids
        Token ids of the prompt, ``(T,)`` or ``(1, T)``, with the placeholder of the model's config.
    pixel_values
        Patches ``(sum of t * h * w, width)`` of all images; the items hold views of them.
    image_grid_thw
        ``(images, 3)``.
    keys
        32 bytes per image. None: the pipeline hashes the patches.

    Raises
    ------
    TypeError
        If the model is of another family.
    ValueError
        If the patches, the grids, the keys or the placeholders differ in number.
    """
    base, family = find_grid_family(model)
    arguments = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
    calls = family.splits["image"](base.config, arguments)
    if calls is None:
        raise TypeError(f"image_grid_thw must be a tensor, it is {type(image_grid_thw).__name__}")
    if keys is not None and len(keys) != len(calls):
        raise ValueError(f"there are {len(keys)} keys for {len(calls)} images")
    merged = base.config.vision_config.spatial_merge_size**2
    num_rows = [prod(call.identity) // merged for call in calls]
    spans = spans_from_token_ids(input_ids, base.config.image_token_id, num_rows)
    return [
        Item(
            call.pixels,
            spans[i],
            num_rows=num_rows[i],
            key=None if keys is None else keys[i],
            grid_thw=call.identity,
        )
        for i, call in enumerate(calls)
    ]


def find_grid_family(model: nn.Module) -> tuple[Any, Family]:
    """Return a base model whose images are patches with a grid, and its family; TypeError for any other."""
    base, family = find_family(model, "put on a pipeline")
    if family.splits["image"] is not split_by_grid:
        raise TypeError(
            f"{type(model).__name__} (model type {base.config.model_type!r}) cannot be put on a pipeline: "
            "its images are not patches with a grid, as those of qwen2_5_vl and qwen3_vl are"
        )
    return base, family
