"""`MODES`: every mode by name."""

from __future__ import annotations

from tiny_zoo import ZooModel

from placed_modes.calls import CALLS, SUFFIX
from placed_modes.compiled import COMPILED
from placed_modes.generates import GENERATES
from placed_modes.media_calls import MEDIA_CALLS, MODALITIES
from placed_modes.side import Mode

NOT_COMPARABLE = {"diffusion_gemma": ("second turn", "loss"), "shieldgemma2": ("loss",)}
"""Modes by family: the models return no loss, and two calls of the diffusion model on a KV cache differ."""

MODES: dict[str, Mode] = {**CALLS, **SUFFIX, **GENERATES, **MEDIA_CALLS, **COMPILED}


def is_mode_of(zoo: ZooModel, name: str) -> bool:
    """Whether the family has the modalities and the methods that this mode needs."""
    if name in NOT_COMPARABLE.get(zoo.name, ()):
        return False
    if name in SUFFIX:
        return zoo.name == "paligemma"
    if name in GENERATES and zoo.options is None:
        return False
    return MODALITIES.get(name, set()) <= set(zoo.media)
