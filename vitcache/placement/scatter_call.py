"""A call of `scatter_embeddings` in two halves: the checks that need no image rows, then the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache import _native
from vitcache.placement import autograd, dispatch
from vitcache.placement.call_checks import (
    bump_versions,
    check_scale,
    check_table_call,
    check_writable,
    needs_grad,
    refuse_store,
)
from vitcache.placement.destination import Destination
from vitcache.placement.levels import index_levels
from vitcache.placement.placement import Placement
from vitcache.placement.placement_call import PlacementCall
from vitcache.placement.placement_table import PlacementTable
from vitcache.placement.spans import Span
from vitcache.tracing import traced


class ScatterCall(PlacementCall):
    """One call of `scatter_embeddings`. The constructor checks everything that needs no image rows.

    It is used like `EmbedCall`. `destination` is the checked `inputs_embeds`. Arguments and exceptions are
    those of `scatter_embeddings`, but the caller must refuse tensors that are `is_traced`. Call `run` once;
    it uses the calling thread's current stream.
    """

    __slots__ = (
        "_deepstack",
        "_deepstack_rows",
        "_inputs_embeds",
        "_scale",
        "_written",
    )

    def __init__(
        self,
        inputs_embeds: Tensor,
        deepstack: Tensor | Sequence[Tensor] | None,
        scale: float | None,
        *,
        deepstack_rows: Tensor | None = None,
    ) -> None:
        self._scale = None if scale is None else check_scale("scale", scale)
        self._inputs_embeds, self._deepstack, self._deepstack_rows = inputs_embeds, deepstack, deepstack_rows
        self._are_spans_checked = False
        self.destination = Destination("inputs_embeds", inputs_embeds, deepstack, deepstack_rows)
        self._written = (inputs_embeds, *self.destination.level_tensors)

    def check_spans(self, spans: Sequence[Sequence[Span]] | _native.Placement) -> None:
        """Check everything that depends on the spans but not on the rows.

        The caller must have checked that the spans fit in the tokens and that `find_overlap` returns None.
        The other tokens are not read, so that only the state of the device is checked.

        Raises
        ------
        RuntimeError
            If a CUDA graph is being captured.
        """
        dispatch.refuse_capture(self.destination.device)
        self._are_spans_checked = True

    @traced("place")
    def run_placed(self, placed: Placement, store: Any = None) -> Tensor:
        """Write all rows of a placement, and return `inputs_embeds`.

        Parameters
        ----------
        placed
            A placement for `destination`. The caller has called `check_spans` with its runs.
        store
            As in `scatter_embeddings`; `placed` was made with it.
        """
        inputs_embeds = self._inputs_embeds
        if torch.is_grad_enabled() and needs_grad(*self._written, *placed.added_items):
            check_writable(*self._written)
            refuse_store(store, "a gradient")
            levels = index_levels("inputs_embeds", inputs_embeds, self._deepstack, self._deepstack_rows)
            num_packed = self.destination.num_packed
            autograd.scatter(inputs_embeds, levels, num_packed, *placed.tensors_and_runs(), self._scale)
            return inputs_embeds
        dispatch.scatter(self.destination, placed, self._scale)
        bump_versions(*self._written)
        return inputs_embeds

    def _run_table(self, table: PlacementTable, spans: Any, store: Any) -> Tensor:
        check_table_call(spans, self._deepstack_rows, *self._written)
        refuse_store(store, "a PlacementTable")
        dispatch.scatter_table(self.destination, table, self._scale)
        bump_versions(*self._written)
        return self._inputs_embeds
