"""`Settings`: the values by which a module's rows can change without a new weight, as texts by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import nn

HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks")
_OF_EACH_MODULE = frozenset(vars(nn.Module())) - {"training"}
_MOST_ELEMENTS = 1000  # of a container, so that a table of words does not cost each call a millisecond
_PLAIN = (bool, int, float, complex, str, bytes, range, torch.dtype, torch.device)
_CONTAINERS = (list, tuple, set, frozenset, dict)
# The numbers of hooks are unique in a process only.
_PROCESS = os.urandom(8).hex()


def describe(value: Any) -> str | None:
    """Return a text that is equal for equal settings, in every process. None: the value is not a setting.

    Settings are None, numbers, strings, dtypes, devices and members of enums, and containers of these.
    """
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Enum):
        return str(value)
    if not isinstance(value, _CONTAINERS) or len(value) > _MOST_ELEMENTS:
        return None
    elements = value.items() if isinstance(value, dict) else value
    texts = []
    for element in elements:
        text = describe(element)
        if text is None:
            return None
        texts.append(text)
    if isinstance(value, dict | set | frozenset):
        texts.sort()
    return f"{type(value).__name__}({', '.join(texts)})"


def own_values(namespace: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield the entries of a module's ``__dict__`` that `nn.Module` itself does not make."""
    return ((name, value) for name, value in namespace.items() if name not in _OF_EACH_MODULE)


def is_method(value: Any) -> bool:
    """Whether a value of a module's ``__dict__`` is code, such as a replaced `forward`, or packed weights."""
    return isinstance(value, torch.ScriptObject) or (
        callable(value) and not isinstance(value, type | nn.Module | torch.Tensor)
    )


def is_config(value: Any) -> bool:
    """Whether a value is a configuration of transformers, or one like it."""
    return isinstance(getattr(value, "__dict__", None), dict) and callable(getattr(value, "to_dict", None))


def is_adapter_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of PEFT with adapters, or one like it."""
    return hasattr(type(module), "_disable_adapters") or "_disable_adapters" in vars(module)


def hooks_of(module: Any, name: str) -> str | None:
    """Return a text with the numbers of a module's hooks. None: it has none."""
    numbers = list(vars(module).get(name) or ())
    return f"{_PROCESS} {numbers}" if numbers else None


def is_hook(name: str) -> bool:
    """Whether the name of a setting is that of a module's hooks."""
    return name.endswith(HOOK_TABLES)


def mixes_adapters(module: nn.Module) -> bool:
    """Whether a running forward has an adapter per prompt: PEFT's argument `adapter_names`."""
    hooks: Iterable[Callable[..., Any]] = module._forward_pre_hooks.values()
    return any(isinstance(hook, partial) and "adapter_names" in hook.keywords for hook in hooks)
