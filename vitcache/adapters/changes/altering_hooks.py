"""`altering_hooks`: the hooks that can alter the rows of an item."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as module_hooks

from vitcache.adapters.changes.code_text import can_alter
from vitcache.adapters.changes.outer_modules import outer_modules
from vitcache.adapters.changes.settings import HOOK_TABLES


def altering_hooks(model: nn.Module) -> dict[str, list[Any]]:
    """Return the hooks outside of the language model by the name of their table.

    Hooks of transformers are left out, and so are those of `model` itself, which features do not run.
    """
    tables: list[tuple[str, Any]] = [(f"_global{name}", module_hooks) for name in HOOK_TABLES]
    for path, module in outer_modules(model).items():
        if module is not model:
            tables += [(f"{path}.{name}", module) for name in HOOK_TABLES]
    found = {}
    for name, owner in tables:
        hooks = list((vars(owner).get(name.rpartition(".")[2]) or {}).values())
        if hooks := list(filter(can_alter, hooks)):
            found[name] = hooks
    return found
