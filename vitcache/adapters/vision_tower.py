"""A model's vision tower: the width of its rows, their namespace, and a cache for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitcache.adapters.families import FAMILIES, Family
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.keys.namespace import Namespace, to_namespace

DEFAULT_ROWS = 32 * 1024
"""Capacity of the default cache in rows: 36 images of 1280x720 in Qwen3-VL, 128 images in Gemma 3."""


def find_family(
    model: nn.Module, purpose: str, families: Mapping[str, Family] = FAMILIES
) -> tuple[Any, Family]:
    """Return the base model of a `transformers` model, and its entry in `families`.

    Raises
    ------
    TypeError
        If the model has no `get_image_features`, or its family is not in `families`. The message says that
        the model cannot be `purpose`, such as ``"attached"``, and lists the families that can.
    """
    base: Any = getattr(model, "base_model", model)
    if not callable(getattr(base, "get_image_features", None)):
        raise TypeError(f"{type(model).__name__} has no get_image_features, so it cannot be {purpose}")
    model_type: Any = getattr(getattr(base, "config", None), "model_type", None)
    family = families.get(model_type)
    if family is None or not isinstance(getattr(base, family.tower, None), nn.Module):
        raise TypeError(
            f"{type(model).__name__} (model type {model_type!r}) cannot be {purpose}; model types that can: "
            f"{', '.join(families)}"
        )
    return base, family


def cache_for(
    base: Any, tower: Any, cache: EmbeddingCache | None, device_bytes: int | str | None
) -> EmbeddingCache:
    """Return `cache` if it fits the tower's rows, or a new cache for None.

    Raises
    ------
    ValueError
        If the rows of `cache` have another width or dtype than the tower's, or if both `cache` and
        `device_bytes` are given.
    """
    width, dtype = row_width(base.config), tower.dtype
    if cache is None:
        if device_bytes is None:
            device_bytes = DEFAULT_ROWS * width * dtype.itemsize
        return EmbeddingCache(width, dtype=dtype, device=_device(base, tower), device_bytes=device_bytes)
    if device_bytes is not None:
        raise ValueError(
            "device_bytes is the budget of the default cache: give cache or device_bytes, not both"
        )
    if cache.row_width != width or cache.dtype != dtype:
        raise ValueError(
            f"cache must have rows of {width} {dtype} for {type(base).__name__}, "
            f"got rows of {cache.row_width} {cache.dtype}"
        )
    return cache


def num_levels(config: Any) -> int:
    """Number of deepstack levels of a model with this config."""
    return len(getattr(config.vision_config, "deepstack_visual_indexes", ()))


def row_width(config: Any) -> int:
    """Number of elements of a row: hidden * (1 + deepstack levels)."""
    hidden: int = config.get_text_config().hidden_size
    return hidden * (1 + num_levels(config))


def namespace_for(model: Any, tower: Any, shared: str | bytes | Namespace | None) -> Namespace:
    """Return the namespace of the tower's rows: model, config, revision, attention, dtype and `shared`.

    The config does not identify the weights. If `shared` is None, the namespace is random, and no entries
    are shared. A str, bytes and a `Namespace` give different namespaces, except a `Namespace` and its digest.

    Raises
    ------
    TypeError
        If `shared` is not a str, bytes, a `Namespace` or None.
    """
    tenant = processor = ""
    if shared is None:
        tenant = os.urandom(16).hex()
    elif isinstance(shared, str):
        tenant = shared
    elif isinstance(shared, bytes | Namespace):
        # In a field of its own, so that a str with these digits gives another namespace.
        processor = f"namespace {to_namespace(shared).hex()}"
    else:
        raise TypeError(f"namespace must be a str, bytes, a Namespace or None, got {type(shared).__name__}")
    config, attention = model.config, tower.config._attn_implementation
    name = (type(model).__qualname__, config.name_or_path, config.to_json_string(use_diff=False))
    return Namespace(
        model=" ".join(name),
        revision=f"{getattr(config, '_commit_hash', None)} {attention}",
        processor=processor,
        dtype=str(tower.dtype),
        tenant=tenant,
    )


def _device(model: nn.Module, tower: nn.Module) -> torch.device:
    """Return the device of the tower's weights or, if they are offloaded, of the first weight that is not."""
    for parameter in (*tower.parameters(), *model.parameters()):
        if parameter.device.type != "meta":
            return parameter.device
    return torch.device("cpu")
