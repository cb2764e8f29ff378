"""Checks of the options of a pipeline, and of the tensors of a step."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pipeline.items import Item
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.shadow import Shadow
from vitcache.ring.pinned_ring import PinnedRing


def check_options(
    encode: Any,
    cache: Any,
    ring: Any,
    agree: Any,
    feature_dtype: Any,
    stream: Any,
    shadow: Any,
    move_features: Any,
) -> None:
    """Check the objects among the options of `VisionPipeline`. Raises as its constructor."""
    if not callable(encode):
        raise TypeError(f"encode must be callable, got {type(encode).__name__}")
    if not isinstance(cache, EmbeddingCache):
        raise TypeError(f"cache must be an EmbeddingCache, got {type(cache).__name__}")
    if not any(feature_dtype is allowed for allowed in (None, torch.bfloat16, torch.float16)):
        raise TypeError(f"feature_dtype must be bfloat16, float16 or None, got {feature_dtype}")
    if agree is not None and not callable(agree):
        raise TypeError(f"agree must be callable, got {type(agree).__name__}")
    if shadow is not None and not isinstance(shadow, Shadow):
        raise TypeError(f"shadow must be a Shadow, got {type(shadow).__name__}")
    if shadow is not None and agree is not None:
        raise ValueError("agree and shadow cannot be combined: only one rank would encode a hit again")
    if not isinstance(move_features, bool):
        raise TypeError(f"move_features must be a bool, got {type(move_features).__name__}")
    if feature_dtype is not None and not move_features:
        raise ValueError("feature_dtype and move_features=False cannot be combined: no feature is cast")
    if ring is not None and not isinstance(ring, PinnedRing):
        raise TypeError(f"ring must be a PinnedRing, got {type(ring).__name__}")
    if stream is not None and not isinstance(stream, torch.cuda.Stream):
        raise TypeError(f"stream must be a torch.cuda.Stream, got {type(stream).__name__}")
    for name, owner in (("ring", ring), ("stream", stream)):
        if owner is not None and owner.device != cache.device:
            raise ValueError(f"{name} must be on {cache.device}, the cache's device, got {owner.device}")


def check_tenant(tenant: Any) -> str:
    """Return the name of a tenant. Raises TypeError if it is not a str."""
    if not isinstance(tenant, str):
        raise TypeError(f"tenant must be a str or None, got {type(tenant).__name__}")
    return tenant


def check_item(item: Any) -> None:
    """Raise TypeError if `item` is not an `Item`."""
    if not isinstance(item, Item):
        raise TypeError(f"item must be an Item, got {type(item).__name__}")


def check_handle(handle: Any) -> None:
    """Raise TypeError if `handle` is not a `Prefetch`."""
    if not isinstance(handle, Prefetch):
        raise TypeError(f"handle must be a Prefetch, got {type(handle).__name__}")


def refuse_tensor(name: str, tensor: Any, device: torch.device) -> NoReturn:
    """Refuse a tensor that is not on the cache's device, or that `is_traced`; or an array of NumPy."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, the cache's device, got {tensor.device}")
    raise TypeError(f"{name} must be a plain tensor, got {type(tensor).__name__}, whose rows cannot be read")
