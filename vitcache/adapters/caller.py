"""`is_called_by_stock_code`: whether code of transformers calls vitcache, or code of the user."""

from __future__ import annotations

import sys
from types import FrameType

_PASSED_OVER = "vitcache.", "torch."
_STOCK = "transformers."
"""The beginnings of the names of modules: those between the caller and vitcache, and those of the stock code."""


def is_called_by_stock_code() -> bool:
    """Whether the innermost frame outside of vitcache and torch runs code of transformers.

    A running forward does not tell this: its hooks are code of the user. And after a KeyboardInterrupt, no hook
    tells the end of the forward.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_PASSED_OVER):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith(_STOCK)
