"""A call of `embed_tokens` in two halves: the checks that need no image rows, then the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitcache.pages.reservation import Reservation
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
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement, check_text_ids
from vitcache.placement.placement_table import PlacementTable
from vitcache.placement.spans import Span


class EmbedCall:
    """One call of `embed_tokens`. The constructor checks everything that needs no image rows.

    A pipeline thus raises for a wrong argument before it encodes anything. `destination` is the checked
    output. Arguments and exceptions are those of `embed_tokens`, but the caller must refuse a weight that
    `is_traced`. Call `run` once; it uses the calling thread's current stream.
    """

    __slots__ = (
        "_are_spans_checked",
        "_deepstack",
        "_has_out",
        "_input_ids",
        "_out",
        "_scale",
        "_text_scale",
        "_weight",
        "destination",
    )

    def __init__(
        self,
        input_ids: Tensor,
        weight: Tensor,
        out: Tensor | None,
        deepstack: Tensor | None,
        scale: float | None,
        text_scale: float | None,
    ) -> None:
        check_embedding(input_ids, weight)
        self._scale, self._text_scale = check_scale("scale", scale), check_scale("text_scale", text_scale)
        self._has_out, self._are_spans_checked = out is not None, False
        self._out = make_out(input_ids, weight, out)
        self._deepstack = deepstack
        self._input_ids, self._weight = input_ids.resolve_neg(), weight.resolve_neg()
        self.destination = Destination("out", self._out, deepstack)
        if self._has_out or deepstack is not None:  # newly allocated memory overlaps nothing
            self.destination.check_apart_from("weight", self._weight)
            self.destination.check_apart_from("input_ids", self._input_ids)

    def check_spans(self, spans: Sequence[Sequence[Span]]) -> None:
        """Check everything that depends on the spans but not on the rows.

        The caller must have checked that the spans fit in the tokens and that `find_overlap` returns None.

        Raises
        ------
        IndexError
            If, on the CPU, the weight has no row for the id of a text token.
        RuntimeError
            If a CUDA graph is being captured.
        """
        dispatch.refuse_capture(self._out.device)
        if self._out.device.type == "cpu":
            check_text_ids(spans, self._input_ids.reshape(-1).contiguous(), self._weight.shape[0])
        self._are_spans_checked = True

    def run(self, embeddings: Any, spans: Any, store: Sequence[Reservation | None] | None) -> Tensor:
        """Write all rows and return the output. After `check_spans`, `spans` must be the spans passed to it.

        Parameters
        ----------
        embeddings, spans, store
            As in `embed_tokens`.
        """
        out, deepstack, weight = self._out, self._deepstack, self._weight
        scales = self._scale, self._text_scale
        if isinstance(embeddings, PlacementTable):
            check_table_call(spans, weight, out, deepstack)
            refuse_store(store, "a PlacementTable")
            dispatch.embed_table(self.destination, self._input_ids, weight, embeddings, *scales)
        else:
            if not self._are_spans_checked:
                dispatch.refuse_capture(out.device)
            placed = Placement(
                self.destination, embeddings, spans, store, is_overlap_checked=self._are_spans_checked
            )
            if needs_grad(weight, out, deepstack, *placed.items):
                refuse_out(self._has_out)
                check_writable(deepstack)
                refuse_store(store, "a gradient")
                items, runs = placed.tensors_and_runs()
                return autograd.embed(out, deepstack, self._input_ids, weight, items, runs, *scales)
            dispatch.embed(
                self.destination,
                self._input_ids,
                weight,
                placed,
                *scales,
                is_text_checked=self._are_spans_checked,
            )
        bump_versions(out, deepstack)
        return out
