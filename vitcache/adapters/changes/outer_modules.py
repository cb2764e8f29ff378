"""`outer_modules`: the modules of a model that can change the rows of an item: all but the language model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from vitcache.adapters.changes.weight_parts import kept_weights
from vitcache.adapters.feature_owner import find_language_model


def outer_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules outside of the language model by name, the model first, named ``""``."""
    language_model = find_language_model(model)
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    pending: list[tuple[str, nn.Module | None]] = [("", model)]
    while pending:
        name, module = pending.pop()
        if module is None or module is language_model or id(module) in seen:
            continue
        seen.add(id(module))
        found[name] = module
        prefix = f"{name}." if name else ""
        pending += [(prefix + child, value) for child, value in reversed(list(module._modules.items()))]
    return found


def outer_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers outside of the language model with their names, as they are now."""
    for prefix, module in outer_modules(model).items():
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if tensor is not None:
                    yield f"{prefix}.{name}" if prefix else name, tensor


def all_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of `outer_weights`, and those that a library keeps beside the modules."""
    yield from outer_weights(model)
    for prefix, module in outer_modules(model).items():
        for table, names in kept_weights(module):
            for name in names:
                if isinstance(table[name], Tensor):
                    yield f"{prefix}.{name}", table[name]
