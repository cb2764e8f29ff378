"""A call of `embed_tokens` in two halves: the checks that need no image rows, then the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache import _native
from vitcache.placement import autograd, dispatch
from vitcache.placement.call_checks import (
    bump_versions,
    check_embedding,
    check_scale,
    check_table_call,
    check_writable,
    make_out,
    needs_grad,
    refuse_out,
    refuse_store,
)
from vitcache.placement.destination import Destination, memory_check, tensor_reader
from vitcache.placement.levels import index_levels
from vitcache.placement.placement import Placement
from vitcache.placement.placement_call import PlacementCall
from vitcache.placement.placement_table import PlacementTable
from vitcache.placement.spans import Span
from vitcache.rows import check_extent, plain_tensor
from vitcache.tracing import traced


class EmbedCall(PlacementCall):
    """One call of `embed_tokens`. The constructor checks everything that needs no image rows.

    A pipeline thus raises for a wrong argument before it encodes anything. `destination` is the checked
    output. Arguments and exceptions are those of `embed_tokens`, but the caller must refuse a weight that
    `is_traced`. Call `run` once; it uses the calling thread's current stream.
    """

    __slots__ = (
        "_deepstack",
        "_deepstack_rows",
        "_has_out",
        "_input_ids",
        "_levels",
        "_out",
        "_scale",
        "_text",
        "_text_scale",
        "_weight",
    )

    def __init__(
        self,
        input_ids: Tensor,
        weight: Tensor,
        out: Tensor | None,
        deepstack: Tensor | Sequence[Tensor] | None,
        scale: float | None,
        text_scale: float | None,
        *,
        deepstack_rows: Tensor | None = None,
    ) -> None:
        self._text = tensor_reader.read_text(input_ids, weight)
        if self._text is None:  # the arguments are wrong or unusual
            if isinstance(input_ids, Tensor) and isinstance(weight, Tensor):
                input_ids, weight = plain_tensor("input_ids", input_ids), plain_tensor("weight", weight)
            check_embedding(input_ids, weight)
            check_extent("input_ids", input_ids)
            check_extent("weight", weight)
        self._scale = None if scale is None else check_scale("scale", scale)
        self._text_scale = None if text_scale is None else check_scale("text_scale", text_scale)
        self._has_out, self._are_spans_checked = out is not None, False
        self._out = out = make_out(input_ids, weight, out)
        self._deepstack, self._deepstack_rows = deepstack, deepstack_rows
        if self._text is None:
            input_ids, weight = input_ids.resolve_neg(), weight.resolve_neg()
        self._input_ids, self._weight = input_ids, weight
        self.destination = Destination("out", out, deepstack, deepstack_rows)
        self._levels = self.destination.level_tensors
        if self._has_out or self._levels:  # newly allocated memory overlaps nothing
            self.destination.check_apart_from("weight", weight)
            self.destination.check_apart_from("input_ids", input_ids)

    def check_spans(self, spans: Sequence[Sequence[Span]] | _native.Placement) -> None:
        """Check everything that depends on the spans but not on the rows.

        The caller must have checked that the spans fit in the tokens and that `find_overlap` returns None. A
        native placement needs only its runs.

        Raises
        ------
        IndexError
            If, on the CPU, the weight has no row for the id of a text token.
        RuntimeError
            If a CUDA graph is being captured.
        """
        device = self.destination.device
        dispatch.refuse_capture(device)
        if device.type == "cpu":
            if not isinstance(spans, _native.Placement):
                native = _native.Placement()
                native.add_spans(spans, Span)
                spans = native
            ids, text = self._input_ids, self._text
            if text is None:
                ids = dispatch.flatten_ids(ids)  # its copy, if it is not contiguous
                text = dispatch.describe_text(ids, self._weight)
            spans.check_text_ids(memory_check, text, self.destination.num_tokens, ids)
        self._are_spans_checked = True

    @traced("place")
    def run_placed(self, placed: Placement, store: Any = None) -> Tensor:
        """Write all rows of a placement, and return the output.

        Parameters
        ----------
        placed
            A placement for `destination`. The caller has called `check_spans` with its runs.
        store
            As in `embed_tokens`; `placed` was made with it.
        """
        out, weight = self._out, self._weight
        if torch.is_grad_enabled() and needs_grad(weight, out, *self._levels, *placed.added_items):
            refuse_out(self._has_out)
            check_writable(*self._levels)
            refuse_store(store, "a gradient")
            items, runs = placed.tensors_and_runs()
            levels = index_levels("out", out, self._deepstack, self._deepstack_rows)
            num_packed = self.destination.num_packed
            return autograd.embed(
                out, levels, num_packed, self._input_ids, weight, items, runs, self._scale, self._text_scale
            )
        text = self._text
        if (
            self._are_spans_checked
        ):  # an encoder may have run since then, and moved the weight to other memory
            text = tensor_reader.read_text(self._input_ids, weight)
        dispatch.embed(
            self.destination,
            self._input_ids,
            weight,
            placed,
            self._scale,
            self._text_scale,
            text=text,
        )
        if self._has_out or self._levels:  # no backward needs the values of newly allocated memory
            bump_versions(out, *self._levels)
        return out

    def _run_table(self, table: PlacementTable, spans: Any, store: Any) -> Tensor:
        check_table_call(spans, self._deepstack_rows, self._weight, self._out, *self._levels)
        refuse_store(store, "a PlacementTable")
        dispatch.embed_table(
            self.destination, self._input_ids, self._weight, table, self._scale, self._text_scale
        )
        bump_versions(self._out, *self._levels)
        return self._out
