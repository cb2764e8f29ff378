"""`is_called_by_stock_code`: whether transformers calls vitcache, or code of the user does."""

from __future__ import annotations

import sys
from functools import lru_cache
from types import CodeType, FrameType

from torch import nn

from vitcache.adapters.feature_owner import codes_of

_PASSED_OVER = "vitcache.", "torch."
"""The beginnings of the names of modules whose frames may be between the caller and this function."""

_STOCK = "transformers."
"""The beginning of the names of modules with stock code."""


def is_called_by_stock_code(owner: nn.Module) -> bool:
    """Whether the innermost frame outside of vitcache and torch runs a stock method of `owner`.

    A running forward does not tell this: its hooks are code of the user. And after a KeyboardInterrupt, no
    hook tells the end of the forward. The locals of a frame are not read: Python would keep them alive.
    """
    cls: type = type(owner)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(_PASSED_OVER):
            return name.startswith(_STOCK) and frame.f_code in _codes(cls)
        frame = frame.f_back
    return False


@lru_cache(maxsize=256)
def _codes(cls: type) -> frozenset[CodeType]:
    return frozenset(codes_of(cls))
