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

_CALLS_OF_MODULES = "torch.nn.modules.module"
"""The module whose functions run the hooks and the forward of a module."""


def is_called_by_stock_code(owner: nn.Module, frame_of_call: int) -> bool:
    """Whether the innermost frame outside of vitcache and torch runs a stock method of `owner`.

    A running forward does not tell this: its hooks are code of the user, which may call the method `forward`
    itself. And after a KeyboardInterrupt, no hook tells the end of the forward. The locals of a frame are not
    read: Python would keep them alive.

    Parameters
    ----------
    frame_of_call
        The `id` of the frame of torch that runs the hooks and the forward of `owner`: the method must run in
        this call. A reference to the frame would keep the callers' locals after a KeyboardInterrupt. As long
        as the call runs, no other frame has this `id`.
    """
    cls: type = type(owner)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (name := frame.f_globals.get("__name__", "")).startswith(_PASSED_OVER):
        frame = frame.f_back
    if frame is None or not name.startswith(_STOCK) or frame.f_code not in _codes(cls):
        return False
    while frame is not None and frame.f_globals.get("__name__") != _CALLS_OF_MODULES:
        frame = frame.f_back
    return id(frame) == frame_of_call


@lru_cache(maxsize=256)
def _codes(cls: type) -> frozenset[CodeType]:
    return frozenset(codes_of(cls))
