"""`PlacedCall`: one call of a stock forward, whose merge writes the rows of lazy features in place."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcache.adapters.caller import is_called_by_stock_code
from vitcache.adapters.lazy_features import LazyFeatures
from vitcache.adapters.lazy_rows import LazyRows, Piece, Range
from vitcache.placement.ops import scatter_embeddings
from vitcache.placement.spans import Span, runs_of_tokens

_LIBRARIES = "torch.", "transformers."
"""The beginnings of the names of modules whose token embeddings return new tensors."""


class PlacedCall:
    """A running call of the forward of `owner`, in one thread.

    Parameters
    ----------
    owner
        The module that owns the stock methods and the token embedding.
    reason
        Why no row can be placed in this call. None: rows can.
    frame_id
        The `id` of the frame of torch that runs the hooks and the forward.

    Attributes
    ----------
    allows_writes
        Whether a merge may write in place.
    has_items
        Whether the call has images, videos or audio clips.
    is_placed
        Whether a merge was placed.
    reason
        Why some rows were not placed. None: all rows that were merged so far were placed.
    """

    __slots__ = ("_levels", "_owner", "allows_writes", "frame_id", "has_items", "is_placed", "reason")

    def __init__(self, owner: nn.Module, reason: str | None, frame_id: int) -> None:
        self._owner, self.frame_id = owner, frame_id
        # By the lock of the rows, which keeps no lease: the thread keeps a call that an interrupt ended.
        self._levels: dict[tuple[Any, int], tuple[tuple[Range, ...], Tensor]] = {}
        self.allows_writes = reason is None
        self.has_items = self.is_placed = False
        self.reason = reason

    def note(self, reason: str) -> None:
        """Note why some rows are not placed. The first reason stays."""
        if self.reason is None:
            self.reason = reason

    def note_read(self, features: LazyFeatures, function: Any) -> None:
        """Note that an operation other than the merge reads rows, unless they are a level that was packed."""
        if (features.rows.lock, features.plane) not in self._levels:
            self.note(f"{getattr(function, '__name__', function)} reads the features")

    def place(self, inputs_embeds: Tensor, mask: Tensor, features: LazyFeatures) -> Any:
        """Write `features` as ``inputs_embeds.masked_scatter(mask, features)`` does, but in place.

        One launch writes the features, and packs the rows of all deepstack levels in the order of the
        tokens; `take_level` returns them. Returns NotImplemented, and writes nothing, if the call does not
        allow it. The host waits for the mask.
        """
        rows = features.rows
        if not self.allows_writes or features.plane:
            return NotImplemented
        if not is_called_by_stock_code(self._owner, self.frame_id):
            return NotImplemented
        if features.memory:  # after `features.rows`: another thread may have read them just now
            return NotImplemented
        if not _fits(inputs_embeds, mask, features):
            self.note("the text embeddings have another dtype, device or layout than the features")
            return NotImplemented
        tokens = np.flatnonzero(mask[..., 0].numpy(force=True))
        pieces = rows.pieces(features.ranges)
        number = prod(features.lengths[:-1])
        if len(tokens) != number:  # torch raises, or writes only the first rows
            return NotImplemented
        levels = inputs_embeds.new_empty(rows.levels, number, rows.hidden) if rows.levels else None
        if not self._is_fresh(inputs_embeds):
            inputs_embeds = inputs_embeds.clone()
        sources = list(map(itemgetter(0), pieces))
        scatter_embeddings(inputs_embeds, sources, _spans(tokens, pieces), deepstack_rows=levels)
        if levels is not None:
            for plane in range(rows.levels):
                self._levels[rows.lock, plane + 1] = features.ranges, levels[plane]
        self.is_placed = True
        return inputs_embeds

    def take_level(
        self, rows: LazyRows, plane: int, ranges: tuple[Range, ...], dtype: torch.dtype
    ) -> Tensor | None:
        """Return these rows of a deepstack level if `place` has packed them in this dtype.

        A level is returned once: the second call gets None, like a call for other rows.
        """
        packed, level = self._levels.pop((rows.lock, plane), (None, None))
        return level if packed == ranges and level is not None and level.dtype == dtype else None

    def _is_fresh(self, inputs_embeds: Tensor) -> bool:
        """Whether nothing but the forward has the output of the token embedding."""
        owner = self._owner
        # A hook that runs after ours, or a function around the forward, may have put its own tensor in.
        if len(owner._forward_pre_hooks) > 1 or "forward" in vars(owner):
            return False
        try:
            embedding: Any = owner.get_input_embeddings()  # type: ignore[operator]
        except (AttributeError, NotImplementedError):
            return False
        # Another module, or a hook, may keep its output.
        is_stock = type(embedding).__module__.startswith(_LIBRARIES) and "forward" not in vars(embedding)
        is_stock = is_stock and not embedding._modules  # a Sequential, for example, runs modules of the user
        has_hooks = embedding._forward_hooks or nn.modules.module._global_forward_hooks
        return is_stock and not has_hooks and not inputs_embeds._is_view()


def _fits(inputs_embeds: Tensor, mask: Tensor, features: LazyFeatures) -> bool:
    """Whether a merge has the dtypes, shapes and devices of the usual one."""
    rows, dtype = features.rows, features.element_type
    return (
        type(inputs_embeds) is type(mask) is Tensor
        and mask.dtype == torch.bool
        and inputs_embeds.dtype == dtype
        and (not rows.levels or rows.dtype == dtype)
        and inputs_embeds.device == mask.device == rows.device
        and inputs_embeds.dim() == mask.dim() == 3
        and inputs_embeds.shape[-1] == rows.hidden
        and inputs_embeds.shape[:-1] == mask.shape[:-1]
        and mask.shape[-1] in (1, rows.hidden)
        and inputs_embeds.is_contiguous()
        and (mask.shape[-1] == 1 or mask.stride(-1) == 0)
        and not torch.is_grad_enabled()
    )


def _spans(tokens: np.ndarray, pieces: Sequence[Piece]) -> list[int | list[Span]]:
    """Return the spans of each piece. The pieces are written to the `tokens` one after the other."""
    spans: list[int | list[Span]] = []
    begin = 0
    for rows, first, number in pieces:
        run = tokens[begin : begin + number]
        begin += number
        start = int(run[0])
        is_whole = first == 0 and number == (len(rows) if isinstance(rows, Tensor) else rows.num_rows)
        is_one_run = int(run[-1]) - start == number - 1
        spans.append(start if is_whole and is_one_run else runs_of_tokens(run, first))
    return spans
