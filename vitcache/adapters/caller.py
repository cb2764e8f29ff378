"""`is_called_by`: whether the stock code of a module calls vitcache, or code of the user."""

from __future__ import annotations

import sys
from types import FrameType

from torch import nn

_PASSED_OVER = "vitcache.", "torch."
"""The beginnings of the names of modules whose frames are between the caller and vitcache."""


def is_called_by(module: nn.Module) -> bool:
    """Whether the innermost frame outside of vitcache and torch belongs to a method of `module`.

    That a forward runs does not tell this: its hooks are code of the user. And after a KeyboardInterrupt, no
    hook tells the end of the forward.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_PASSED_OVER):
        frame = frame.f_back
    return frame is not None and frame.f_locals.get("self") is module
