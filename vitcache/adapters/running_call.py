"""`ThreadState`: the call of a stock forward that a thread runs, as lazy features see it."""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from torch import Tensor

from vitcache.adapters.lazy_rows import LazyRows, Range


class RunningCall(Protocol):
    """A call of a stock forward. `PlacedCall` is the only class, in a module that imports `lazy_features`.

    Attributes
    ----------
    allows_writes
        Whether a merge may write in place.
    frame_id
        The `id` of the frame of torch that runs the hooks and the forward.
    has_items
        Whether the call has images, videos or audio clips.
    """

    allows_writes: bool
    frame_id: int
    has_items: bool

    def note(self, reason: str) -> None:
        """Note why some rows are not placed."""

    def note_read(self, features: Any, function: Any) -> None:
        """Note that an operation other than the merge reads rows."""

    def place(self, inputs_embeds: Tensor, mask: Tensor, features: Any) -> Any:
        """Write the rows of lazy features in place; NotImplemented if the call does not allow it."""

    def take_level(
        self, rows: LazyRows, plane: int, ranges: tuple[Range, ...], dtype: torch.dtype
    ) -> Tensor | None:
        """Return these rows of a deepstack level if `place` has packed them in this dtype."""


class ThreadState(threading.local):
    """The state of one thread.

    Attributes
    ----------
    call
        The call of the stock forward that the thread runs. None: it runs none.
    pre_encodes
        Whether the thread encodes items for `generate`, before its first forward.
    """

    call: RunningCall | None = None
    pre_encodes = False
