"""The changes of a model that docs/changes.md lists, each as a function that changes a tiny model.

`CHANGES` has all of them, in the order of the page. tests/adapters/changes runs each one, and
tests/changes_table.py writes the tables of the page.
"""

from __future__ import annotations

from importlib import import_module

from model_changes.change import (
    AT_ONCE,
    BY_CALL,
    BYPASSED,
    CHANGES,
    KEPT,
    NAMED,
    REFUSED,
    Change,
)
from model_changes.scene import Scene

__all__ = [
    "AT_ONCE",
    "BYPASSED",
    "BY_CALL",
    "CHANGES",
    "KEPT",
    "NAMED",
    "REFUSED",
    "Change",
    "Scene",
]

# Each module registers its changes: this is their order in the tables of the page.
for _name in (
    "optimizers",
    "written",
    "converted",
    "modules",
    "peft_adapters",
    "peft_layers",
    "peft_loaded",
    "transformers_adapters",
    "hand_written",
    "settings",
    "hooks",
    "parametrized",
    "quantised",
    "offloaded",
    "sharded",
    "unseen",
    "unseen_methods",
    "bypassed",
    "kept",
):
    import_module(f"model_changes.{_name}")
