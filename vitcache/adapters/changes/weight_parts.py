"""`parts_of`: the tensors that hold the values of a weight; weights that a library keeps beside the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def inner_tensors(tensor: Tensor) -> dict[str, Tensor]:
    """Return the tensors that a tensor subclass wraps by name, such as the local tensor of a DTensor."""
    if type(tensor) in _PLAIN or not hasattr(tensor, "__tensor_flatten__"):
        return {}
    names, _ = tensor.__tensor_flatten__()
    values = {name: getattr(tensor, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def parts_of(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a weight and, if it is a tensor subclass, the tensors in it, with their names."""
    yield name, tensor
    for inner, value in inner_tensors(tensor).items():
        yield from parts_of(f"{name}.{inner}", value)


def tensors_in(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a dict or list, with their names."""
    if isinstance(value, Tensor):
        yield from parts_of(name, value)
    elif isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, element in list(pairs):
            yield from tensors_in(f"{name}.{key}", element)


def kept_weights(module: nn.Module) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
    """Yield the dicts with weights of a module that are not in its tables now, and their keys in the dict.

    These are the weights that accelerate offloads to host memory, and the shards of FSDP2.
    """
    hook = vars(module).get("_hf_hook")
    for each in getattr(hook, "hooks", (hook,)):
        weights = getattr(each, "weights_map", None)
        prefix, dataset = getattr(weights, "prefix", ""), getattr(weights, "dataset", weights)
        table = getattr(dataset, "state_dict", dataset)  # of weights in files, the dict has none
        if isinstance(table, dict):
            names = (*module._parameters, *module._buffers)
            yield table, frozenset(prefix + name for name in names if prefix + name in table)
    if hasattr(type(module), "_get_fsdp_state"):
        state: Any = module._get_fsdp_state()  # type: ignore[operator]
        one = getattr(state, "_fsdp_param_group", None)
        for group in getattr(state, "_fsdp_param_groups", [one] if one is not None else []):
            for parameter in group.fsdp_params:
                yield vars(parameter), frozenset({"sharded_param"})


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the storage of a tensor; None if it has none, or has no memory."""
    try:
        storage = tensor.untyped_storage()
        return storage if storage.data_ptr() else None
    except (RuntimeError, NotImplementedError):  # for instance, a sparse tensor
        return None


def version_owners(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Return, by the id of a plain tensor, an empty tensor that shares only its version counter."""
    owners: dict[int, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        for tensor in tensors:
            if type(tensor) in _PLAIN and not (tensor.is_inference() or tensor.is_meta):
                try:
                    owner = tensor.detach()
                    owner.data = tensor.new_empty(0)
                except (RuntimeError, NotImplementedError):  # for instance, a quantized tensor
                    continue
                owners[id(tensor)] = owner
    return owners
