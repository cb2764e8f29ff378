"""`weight_parts` and `parts_beside`: the tensors of a module that `model_digest` hashes, with their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from vitcache.adapters.changes.settings import OF_THE_PROCESS, describe, is_config, is_method, own_values
from vitcache.adapters.changes.weight_parts import inner_tensors
from vitcache.rows import check_extent

HOOK = "_hf_hook"  # of accelerate, which moves weights
HINT = "give a namespace that names the weights, such as their revision"
_MOST_LEVELS = 3  # of the objects with tensors beside a quantised weight, or in attributes of a module


class Part(NamedTuple):
    """A tensor whose bytes are hashed. `text` has its dtype, and more if it belongs to a quantised weight."""

    name: str
    text: str
    tensor: Tensor


def weight_parts(name: str, tensor: Tensor) -> Iterator[Part]:
    """Yield the parts of a weight. The inner tensors of a subclass are weights of their own."""
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__} {tensor.dtype}"
    if hasattr(tensor, "placements") or hasattr(tensor, "ds_id"):
        refuse(name, "is sharded, and this process has a part of it")
    if tensor.is_meta:
        refuse(name, "is offloaded, or has no bytes")
    if tensor.layout is not torch.strided or tensor.is_nested:
        refuse(name, f"has the layout {tensor.layout}")
    if tensor.is_quantized:
        yield from _quantized(name, tensor)
    elif inner_tensors(tensor):
        _, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        yield Part(name, f"{kind} {tuple(tensor.shape)} {context!r}", _no_bytes())
    else:
        try:
            check_extent(name, tensor)
        except ValueError:
            refuse(name, "has no memory now")
        yield Part(name, kind, tensor)
        yield from _beside(name, vars(tensor), _MOST_LEVELS)


def _quantized(name: str, tensor: Tensor) -> Iterator[Part]:
    """Yield the values, the scales and the zero points of a tensor of torch's quantised dtypes."""
    text = f"{tensor.dtype} {tensor.qscheme()}"
    yield Part(name, text, tensor.int_repr())
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale = f"{tensor.q_scale()!r} {tensor.q_zero_point()}"
        yield Part(f"{name}.scale", scale, _no_bytes())
    else:
        yield Part(f"{name}.scales", str(tensor.q_per_channel_axis()), tensor.q_per_channel_scales())
        yield Part(f"{name}.zero_points", "", tensor.q_per_channel_zero_points())


def parts_beside(module: nn.Module, path: str, known: frozenset[int]) -> Iterator[Part]:
    """Yield the values in attributes of a module that are neither its weights nor settings.

    `known` has the ids of the modules of the model.
    """
    for name, value in sorted(own_values(vars(module)), key=itemgetter(0)):
        if name in OF_THE_PROCESS or name == HOOK or is_config(value) or is_method(value):
            continue
        if describe(value, []) is None:
            yield from _value_parts(f"{path}.{name}", value, _MOST_LEVELS, known)


def _beside(
    name: str, values: Mapping[Any, Any], levels: int, known: frozenset[int] = frozenset()
) -> Iterator[Part]:
    """Yield the values that a library keeps as attributes of a weight, such as scales of bitsandbytes."""
    for key in sorted(values, key=str):
        if key not in OF_THE_PROCESS and values[key] is not None:
            yield from _value_parts(f"{name}.{key}", values[key], levels, known)


def _value_parts(path: str, value: Any, levels: int, known: frozenset[int]) -> Iterator[Part]:
    if isinstance(value, Tensor):
        yield from weight_parts(path, value)
    elif isinstance(value, nn.Module):
        if id(value) not in known:  # in a plain list
            yield Part(path, f"{type(value).__module__}.{type(value).__qualname__}", _no_bytes())
            for name, tensor in sorted([*value.named_parameters(), *value.named_buffers()]):
                yield from weight_parts(f"{path}.{name}", tensor)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        values = torch.frombuffer(bytearray(value.tobytes() + bytes(1)), dtype=torch.uint8)
        yield Part(path, f"{value.dtype} {value.shape}", values)
    elif (text := describe(value, [])) is not None:
        yield Part(path, text, _no_bytes())
    elif levels and isinstance(value, dict):
        yield from _beside(path, value, levels - 1, known)
    elif levels and isinstance(value, list | tuple):
        for number, element in enumerate(value):
            yield from _value_parts(f"{path}.{number}", element, levels - 1, known)
    elif levels and isinstance(getattr(value, "__dict__", None), dict) and not callable(value):
        yield from _beside(path, vars(value), levels - 1, known)


def _no_bytes() -> Tensor:
    return torch.empty(0, device="cpu", dtype=torch.uint8)


def refuse(name: str, reason: str) -> NoReturn:
    """Raise ValueError, because a weight cannot be read. `reason` follows its name."""
    raise ValueError(f"the weights cannot be named by their bytes, because {name} {reason}: {HINT}")
