"""`unwrap`: the transformers model inside of the wrappers that users have around it."""

from __future__ import annotations

from typing import Any

from torch import nn

# The attribute of a wrapper that is the wrapped module: of `torch.compile`; and of DistributedDataParallel,
# DataParallel and FullyShardedDataParallel. FSDP2's `fully_shard` changes a model's class and wraps nothing.
_INNER = ("_orig_mod", "module")


def unwrap(model: Any) -> Any:
    """Return the model inside of a `pipeline()`, a PeftModel, a compiled module or a data-parallel wrapper.

    Wrappers may be nested. Any other object is returned as it is.
    """
    seen: set[int] = set()
    while id(model) not in seen:
        seen.add(id(model))
        model = _inner(model)
    return model


def _inner(model: Any) -> Any:
    if not isinstance(model, nn.Module):  # transformers.pipeline() returns an object with a `model`
        inner = getattr(model, "model", None)
        return inner if isinstance(inner, nn.Module) else model
    base_model = getattr(type(model), "get_base_model", None)  # PEFT
    if callable(base_model):
        return base_model(model)
    for name in _INNER:
        inner = model._modules.get(name)
        if inner is not None and not hasattr(type(model), "get_image_features"):
            return inner
    return model
