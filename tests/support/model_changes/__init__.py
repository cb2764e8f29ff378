"""The changes of a model that docs/changes.md lists: each one as a function that changes a tiny model.

`CHANGES` has all of them by name. tests/adapters/changes runs each one, and tests/changes_table.py writes the
table of the page.
"""

from __future__ import annotations

from model_changes import (
    bypassed,
    converted,
    hand_written,
    hooks,
    kept,
    modules,
    offloaded,
    optimizers,
    parametrized,
    peft_adapters,
    peft_layers,
    quantised,
    settings,
    sharded,
    transformers_adapters,
    unseen,
    unseen_methods,
    written,
)
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
    "bypassed",
    "converted",
    "hand_written",
    "hooks",
    "kept",
    "modules",
    "offloaded",
    "optimizers",
    "parametrized",
    "peft_adapters",
    "peft_layers",
    "quantised",
    "settings",
    "sharded",
    "transformers_adapters",
    "unseen",
    "unseen_methods",
    "written",
]
