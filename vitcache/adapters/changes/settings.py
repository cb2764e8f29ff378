"""`Settings`: the values by which a module's rows can change without a new weight, as texts by name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from numbers import Number
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from vitcache.adapters.feature_owner import MODALITIES, method_name
from vitcache.adapters.replaced_methods import MERGE

HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks")
# Checkpoints of activations are made in training mode only. A trainer switches them before each rollout.
_OF_TRAINING = {"gradient_checkpointing", "_gradient_checkpointing_func"}
_OF_EACH_MODULE = frozenset(vars(nn.Module())) - {"training"} | _OF_TRAINING
# Settings that tell where a model was loaded from, and notes of transformers about its own work.
OF_THE_PROCESS = {
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "_is_hf_initialized",
    "_output_capturing_hooks_installed",
}
# The hook of `enable_input_require_grads` of transformers. It alters no value.
_HOOK_OF_TRAINING = "make_inputs_require_grads"
_MOST_ELEMENTS = 1000  # of a setting, so that a table of words does not cost each call a millisecond
_MOST_LEVELS = 8  # as in csrc/python/module_watch.h
_PLAIN = (Number, np.generic, str, bytes, range, torch.dtype, torch.device)
_REPLACED = {method_name(modality) for modality in MODALITIES} | {"forward", MERGE}
_CONTAINERS = (list, tuple, set, frozenset, dict)
# The numbers of hooks are unique in a process only.
_PROCESS = os.urandom(8).hex()
_class_texts: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_class_counts: Counter[str] = Counter()


def describe(value: Any, kept: list[Any]) -> str | None:
    """Return a text that is equal for equal settings, in every process. None: the value is not a setting.

    Settings are None, numbers (of NumPy, too), strings, dtypes, devices and members of enums, and containers
    of these, up to 8 levels deep and with 1,000 elements in all. They are appended to `kept`, with their
    elements: while that list lives, no other value gets their addresses.
    """
    return _describe(value, kept, [_MOST_ELEMENTS], _MOST_LEVELS)


def _describe(value: Any, kept: list[Any], left: list[int], levels: int) -> str | None:
    """As `describe`, with at most `levels` levels, and `left[0]` elements, which are counted down."""
    if value is None or isinstance(value, _PLAIN):
        kept.append(value)
        return repr(value)
    if isinstance(value, Enum):
        return str(value)
    if not isinstance(value, _CONTAINERS) or not levels:
        return None
    elements = list(value.items() if isinstance(value, dict) else value)  # other threads may change it
    left[0] -= len(elements)
    if left[0] < 0:
        return None
    texts = []
    for element in elements:
        if isinstance(value, dict):
            name, inner = (_describe(part, kept, left, levels - 1) for part in element)
            text = None if name is None or inner is None else f"{name}: {inner}"
        else:
            text = _describe(element, kept, left, levels - 1)
        if text is None:
            return None
        texts.append(text)
    if isinstance(value, dict | set | frozenset):
        texts.sort()
    kept.append(value)
    return f"{type(value).__name__}({', '.join(texts)})"


def own_values(namespace: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the entries of a module's ``__dict__`` that can decide its rows: `training` and those that are
    neither of `nn.Module` itself nor of training alone."""
    return [(name, value) for name, value in list(namespace.items()) if name not in _OF_EACH_MODULE]


def is_method(value: Any) -> bool:
    """Whether a value of a module's ``__dict__`` is code, such as a replaced `forward`, or packed weights."""
    return isinstance(value, torch.ScriptObject) or (
        callable(value) and not isinstance(value, type | nn.Module | torch.Tensor)
    )


def is_of_forward(name: str, value: Any) -> bool:
    """Whether an attribute of the owner belongs to its forward, or is one that `attach` replaces.

    The owner has the stock methods. Its forward sets attributes that are None before the first call, such as
    the deltas of positions.
    """
    return value is None or name in _REPLACED


def class_text(module: nn.Module) -> str:
    """Return the name of a module's class, and how many other classes of this name were seen before it."""
    made = type(module)
    text = _class_texts.get(made)
    if text is None:
        name = f"{made.__module__}.{made.__qualname__}"
        text = _class_texts.setdefault(made, f"{name} {_class_counts[name]}")
        _class_counts[name] += 1
    return text


def is_config(value: Any) -> bool:
    """Whether a value is a configuration of transformers, or one like it."""
    return isinstance(getattr(value, "__dict__", None), dict) and callable(getattr(value, "to_dict", None))


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of PEFT with adapters, or one like it."""
    return hasattr(type(module), "_disable_adapters") or "_disable_adapters" in vars(module)


def hooks_of(module: Any, name: str) -> str | None:
    """Return a text with the numbers of a module's hooks that can alter values. None: it has none."""
    hooks = list((vars(module).get(name) or {}).items())
    numbers = [number for number, hook in hooks if getattr(hook, "__name__", "") != _HOOK_OF_TRAINING]
    return f"{_PROCESS} {numbers}" if numbers else None


def is_random(module: nn.Module) -> bool:
    """Whether a module is in training mode and drops values, or normalizes by the values of a call."""
    if not module.training:
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    return any("drop" in name and _is_positive(value) for name, value in own_values(vars(module)))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def is_hook(name: str) -> bool:
    """Whether the name of a setting is that of a module's hooks."""
    return name.endswith(HOOK_TABLES)


def is_merge(name: str) -> bool:
    """Whether the name of a setting tells which adapters are merged. PEFT merges them through `.data`."""
    return name.rpartition(".")[2] in ("merged_adapters", "merged")


def mixes_adapters(module: nn.Module) -> bool:
    """Whether a running forward has an adapter per prompt: PEFT's argument `adapter_names`."""
    hooks: Iterable[Callable[..., Any]] = module._forward_pre_hooks.values()
    return any(isinstance(hook, partial) and "adapter_names" in hook.keywords for hook in hooks)
