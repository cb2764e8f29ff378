"""A model's vision tower: its module, the width of its rows, their namespace, and a cache for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vitcache.adapters.changes.model_digest import model_digest
from vitcache.adapters.families import FAMILIES, Family
from vitcache.adapters.feature_owner import find_language_model, find_owner, has_tower
from vitcache.adapters.wrappers import unwrap
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.keys.namespace import Namespace, to_namespace
from vitcache.rows import DTYPES

DEFAULT_ROWS = 32 * 1024
"""Capacity of the default cache in rows: 37 images of 1280x720 in Qwen3-VL, 128 images in Gemma 3."""


def find_family(model: Any, purpose: str, families: Mapping[str, Family] = FAMILIES) -> tuple[Any, Family]:
    """Return the module that owns the stock methods of a `transformers` model, and its entry in `families`.

    Raises
    ------
    TypeError
        If the model has no `get_image_features`, or its family is not in `families`. The message says that
        the model cannot be `purpose`, such as ``"attached"``, and lists the families that can.
    """
    owner = owner_of(model, purpose, families)
    family = families.get(owner.config.model_type)
    if family is None or not has_tower(owner, family.tower):
        raise TypeError(
            f"{name_of(unwrap(model))} cannot be {purpose}; model types that can: {', '.join(families)}"
        )
    return owner, family


def owner_of(model: Any, purpose: str, families: Mapping[str, Family] = FAMILIES) -> Any:
    """Return the module that owns the stock methods of a `transformers` model, whatever wraps the model."""
    inner = unwrap(model)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}")
    owner = find_owner(inner)
    if owner is None or not hasattr(getattr(owner, "config", None), "model_type"):
        named = type(inner).__name__
        if not any(callable(getattr(module, "get_image_features", None)) for module in inner.modules()):
            raise TypeError(f"{named} has no get_image_features, so it cannot be {purpose}")
        raise TypeError(
            f"{name_of(inner)} cannot be {purpose}: none of its methods calls its "
            f"get_image_features; model types that can: {', '.join(families)}"
        )
    return owner


def name_of(model: Any) -> str:
    """Return the class and the model type of a model for an error message."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return f"{type(model).__name__} (model type {model_type!r})"


def cache_for(
    base: Any,
    tower: Any,
    cache: EmbeddingCache | None,
    device_bytes: int | str | None,
    width: int | None = None,
    **options: Any,
) -> EmbeddingCache:
    """Return `cache` if it fits the tower's rows, or a new cache for None.

    Parameters
    ----------
    width
        Elements of a row, if they are known. None: `row_width` of the config is a guess, and the first output
        of the model decides.
    **options
        Further options of the new cache. None: the default of `EmbeddingCache`.

    Raises
    ------
    ValueError
        If the rows of `cache` have another width or dtype than the tower's, or if both `cache` and an option
        of the new cache are given.
    """
    given = {name: value for name, value in options.items() if value is not None}
    dtype = weights_dtype(tower)
    if cache is None:
        elements = row_width(base.config) if width is None else width
        return new_cache(base, tower, elements, dtype, device_bytes, options)
    if device_bytes is not None:
        given = {"device_bytes": device_bytes} | given
    if given:
        name = next(iter(given))
        meaning = "is the budget" if name.endswith("_bytes") else "is an option"
        raise ValueError(f"{name} {meaning} of the default cache: give cache or {name}, not both")
    # A tower with weights of several dtypes returns rows in one of these: its first output decides.
    possible = {dtype, *_dtypes(base)}
    if (width is not None and cache.row_width != width) or cache.dtype not in possible:
        expected = f"{cache.row_width if width is None else width} {dtype}"
        raise ValueError(
            f"cache must have rows of {expected} for {type(base).__name__}, "
            f"got rows of {cache.row_width} {cache.dtype}"
        )
    return cache


def new_cache(
    base: Any,
    tower: Any,
    width: int,
    dtype: torch.dtype,
    device_bytes: int | str | None,
    options: Mapping[str, Any],
) -> EmbeddingCache:
    """Return a new cache on the tower's device, with pages for `DEFAULT_ROWS` rows unless the caller says.

    With tiers, it has a host tier: as large as the device tier, unless the caller says.
    """
    if device_bytes is None:
        device_bytes = DEFAULT_ROWS * width * dtype.itemsize
    if options.get("tiers") and options.get("host_bytes") is None:
        options = {**options, "host_bytes": device_bytes}
    given = {name: value for name, value in options.items() if value is not None}
    return EmbeddingCache(width, dtype=dtype, device=_device(base, tower), device_bytes=device_bytes, **given)


def weights_dtype(tower: nn.Module) -> torch.dtype:
    """Return the dtype of the tower's first weight that rows can have. The rows may have another one."""
    found = (weight.dtype for weight in tower.parameters())
    return next((dtype for dtype in found if dtype in DTYPES), torch.get_default_dtype())


def num_levels(config: Any) -> int:
    """Number of deepstack levels of a model with this config."""
    return len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ())


def row_width(config: Any) -> int:
    """Number of elements of a row: hidden * (1 + deepstack levels), unless the family has its own."""
    family = FAMILIES.get(config.model_type)
    if family is not None and family.row_width is not None:
        return family.row_width(config)
    hidden: int = config.get_text_config().hidden_size
    return hidden * (1 + num_levels(config))


def namespace_for(
    model: Any, tower: Any, shared: str | bytes | Namespace | None, *, has_tiers: bool = False
) -> Namespace:
    """Return the namespace of the tower's rows: model, config, revision, attention, dtype and `shared`.

    The config does not identify the weights. If `shared` is None, the namespace is random, and no entries
    are shared. If `has_tiers` is true, too, entries outlive the process: then `model_digest` and the kind of
    the device take the place of the config and the revision. A str, bytes and a `Namespace` give different
    namespaces, except a `Namespace` and its digest.

    Raises
    ------
    TypeError
        If `shared` is not a str, bytes, a `Namespace` or None.
    ValueError
        As `model_digest`.
    """
    attention = getattr(getattr(tower, "config", None), "_attn_implementation", None)
    dtype = str(weights_dtype(tower))
    if shared is None and has_tiers:
        content = f"content {model_digest(model).hex()} {attention} {_device_kind(_device(model, tower))}"
        return Namespace(type(model).__qualname__, revision=content, dtype=dtype)
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
    config = model.config
    name = (type(model).__qualname__, config.name_or_path, config.to_json_string(use_diff=False))
    return Namespace(
        model=" ".join(name),
        revision=f"{getattr(config, '_commit_hash', None)} {attention}",
        processor=processor,
        dtype=dtype,
        tenant=tenant,
    )


def _dtypes(owner: nn.Module) -> Iterator[torch.dtype]:
    """Yield the dtypes of the weights outside of the language model."""
    language_model = find_language_model(owner)
    own = {id(weight) for weight in language_model.parameters()} if language_model is not None else set()
    for weight in owner.parameters():
        if id(weight) not in own:
            yield weight.dtype


def _device_kind(device: torch.device) -> str:
    """Return a text of the kind of a device: the last bits of rows differ between kinds."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _device(model: nn.Module, tower: nn.Module) -> torch.device:
    """Return the device of the tower's weights or, if they are offloaded, of the first weight that is not."""
    for parameter in (*tower.parameters(), *model.parameters()):
        if parameter.device.type != "meta":
            return parameter.device
    return torch.device("cpu")
