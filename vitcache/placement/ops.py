"""`scatter_embeddings` and `embed_tokens`: rows of images into ``inputs_embeds``, in place and in one pass.

Eager calls without gradients go straight to what `dispatch` chooses for the device. Gradients and
torch.compile go through the operators of `torch_ops`; those take tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation
from vitcache.placement import autograd, dispatch
from vitcache.placement.call_checks import (
    bump_versions,
    check_embedding,
    check_scale,
    check_table_call,
    check_writable,
    is_traced,
    make_out,
    needs_grad,
    refuse_out,
    refuse_store,
)
from vitcache.placement.destination import Destination
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.placement import Placement
from vitcache.placement.placement_table import PlacementTable
from vitcache.placement.runs import check_lists, list_runs


def scatter_embeddings(
    inputs_embeds: Tensor,
    embeddings: Sequence[Tensor | Lease | Reservation] | Tensor | PlacementTable,
    spans: Any,
    *,
    deepstack: Tensor | None = None,
    scale: float | None = None,
    store: Sequence[Reservation | None] | None = None,
) -> Tensor:
    """Write rows of images over tokens of `inputs_embeds`, in place.

    Parameters
    ----------
    inputs_embeds
        ``(T, H)`` or ``(B, T, H)``, float32, float16 or bfloat16; spans index the flattened ``B * T`` tokens.
        Rows may have any stride; elements of a row must be adjacent.
    embeddings
        Per item a tensor ``(n, W)`` on the same device, a pinned CPU tensor, a `Lease`, or a `Reservation`
        whose rows were written; any of the three dtypes.
        ``W == H``, or ``H * (1 + L)`` with `deepstack`. Or one packed tensor ``(N, W)`` for spans as an
        array. Or a `PlacementTable`, which holds its spans: the one form that a CUDA graph can capture.
    spans
        Per item an int (first token of the whole item), a `Span`, or a list of them. For a packed tensor one
        int64 array or CPU tensor ``(n, 3)`` of start, length and source_start. None for a table.
    deepstack
        ``(L, T, H)``, same dtype and device: columns ``[H * (l + 1), H * (l + 2))`` of a row go to
        ``deepstack[l]``.
    scale
        Multiplies every image column, in float32.
    store
        Per item a reservation whose pages take all of its rows in the same launch, also those that no span
        names, or None. The rows are rounded to the cache's dtype before they are placed, as they will be when
        they come from there; they are stored without `scale`. It remains to `Reservation.commit` them.

    Returns
    -------
    Tensor
        `inputs_embeds` itself. Rows outside the spans are left alone, in `deepstack` too.

    Raises
    ------
    IndexError
        If a span does not fit in the tokens.
    ValueError
        If spans overlap, or what is written overlaps or shares memory with what is read, or an item has too
        few rows, another width or another device than the destination or its reservation; with `store`, if a
        gradient is asked for, or the call is compiled.
    TypeError
        If a type or dtype is not one of the above.
    RuntimeError
        If a lease was released, a reservation committed or cancelled, a CUDA graph is being captured and the
        rows come from no table, or gradients are recorded and torch lets nobody write the destination in
        place (a leaf, a view of one, one of several views).

    Notes
    -----
    Nothing is written if anything is raised. Runs on the current stream and does not wait for it. Any thread
    may call. Differentiable in `embeddings`, `inputs_embeds` and `deepstack`; the rows of a lease are
    constants.
    """
    scale = check_scale("scale", scale)
    if is_traced(inputs_embeds):
        refuse_store(store, "torch.compile")
        runs, tensors = _as_tensors(embeddings, spans)
        if needs_grad(inputs_embeds, deepstack, *tensors):
            autograd.scatter(inputs_embeds, deepstack, tensors, runs, scale)
        else:
            torch.ops.vitcache.scatter_embeddings_(inputs_embeds, deepstack, tensors, runs, scale)
        return inputs_embeds
    destination = Destination("inputs_embeds", inputs_embeds, deepstack)
    if isinstance(embeddings, PlacementTable):
        check_table_call(spans, inputs_embeds, deepstack)
        refuse_store(store, "a PlacementTable")
        dispatch.scatter_table(destination, embeddings, scale)
    else:
        dispatch.refuse_capture(inputs_embeds.device)
        placed = Placement(destination, embeddings, spans, store)
        if needs_grad(inputs_embeds, deepstack, *placed.items):
            check_writable(inputs_embeds, deepstack)
            refuse_store(store, "a gradient")
            autograd.scatter(inputs_embeds, deepstack, *placed.tensors_and_runs(), scale)
            return inputs_embeds
        dispatch.scatter(destination, placed, scale)
    bump_versions(inputs_embeds, deepstack)
    return inputs_embeds


def embed_tokens(
    input_ids: Tensor,
    weight: Tensor,
    embeddings: Sequence[Tensor | Lease | Reservation] | Tensor | PlacementTable,
    spans: Any,
    *,
    out: Tensor | None = None,
    deepstack: Tensor | None = None,
    scale: float | None = None,
    text_scale: float | None = None,
    store: Sequence[Reservation | None] | None = None,
) -> Tensor:
    """Build ``inputs_embeds``: rows of `weight` at text, rows of images at the spans, each written once.

    Parameters
    ----------
    input_ids
        ``(T,)`` or ``(B, T)``, int64 or int32, on the weight's device. Ids under a span may be anything and
        are not looked up. Ids of text tokens must be rows of `weight`: checked on the CPU, the caller's
        promise on CUDA.
    weight
        The token embedding ``(V, H)``, float32, float16 or bfloat16.
    out
        ``(T, H)`` or ``(B, T, H)`` of one of the three dtypes; None allocates it in the weight's dtype.
    deepstack
        ``(L, T, H)``, written in full: zero at text tokens.
    text_scale
        Multiplies the rows of text tokens, rounded to the weight's dtype and in that dtype, as a model with a
        scaled embedding does (Gemma 3: ``sqrt(H)``).
    embeddings, spans, scale, store
        As in `scatter_embeddings`.

    Returns
    -------
    Tensor
        `out`, shaped ``input_ids.shape + (H,)``.

    Raises
    ------
    IndexError, ValueError, TypeError, RuntimeError
        As `scatter_embeddings`; IndexError also for the id of a text token on the CPU that is no row of
        `weight`.

    Notes
    -----
    Stream, thread and gradient rules as in `scatter_embeddings`; also differentiable in `weight`, then
    without `out`.
    """
    if is_traced(weight):
        return _embed_traced(input_ids, weight, embeddings, spans, out, deepstack, scale, text_scale, store)
    call = EmbedCall(input_ids, weight, out, deepstack, scale, text_scale)
    return call.run(embeddings, spans, store)


def _embed_traced(
    input_ids: Tensor,
    weight: Tensor,
    embeddings: Any,
    spans: Any,
    out: Tensor | None,
    deepstack: Tensor | None,
    scale: float | None,
    text_scale: float | None,
    store: Any,
) -> Tensor:
    """`embed_tokens` where the operators know what to do."""
    check_embedding(input_ids, weight)
    scale, text_scale = check_scale("scale", scale), check_scale("text_scale", text_scale)
    has_out, out = out is not None, make_out(input_ids, weight, out)
    refuse_store(store, "torch.compile")
    runs, tensors = _as_tensors(embeddings, spans)
    if needs_grad(weight, deepstack, *tensors):
        refuse_out(has_out)
        return autograd.embed(out, deepstack, input_ids, weight, tensors, runs, scale, text_scale)
    torch.ops.vitcache.embed_tokens_(out, deepstack, input_ids, weight, tensors, runs, scale, text_scale)
    return out


def _as_tensors(embeddings: Any, spans: Any) -> tuple[Tensor, Sequence[Tensor]]:
    """The operators' form in what a tracer understands: runs ``(n, 4)``, and one tensor per item."""
    if isinstance(embeddings, Tensor):
        spans = spans if isinstance(spans, Tensor) else torch.as_tensor(spans, device="cpu")
        return torch.nn.functional.pad(spans, (1, 0)), [embeddings]
    check_lists(embeddings, spans)
    for item, rows in enumerate(embeddings):
        if not isinstance(rows, Tensor):
            raise TypeError(f"item {item} must be a tensor in a compiled call, it is {type(rows).__name__}")
    runs = list_runs(spans, [rows.shape[0] for rows in embeddings])
    return torch.tensor(runs, dtype=torch.int64, device="cpu").reshape(-1, 4), embeddings
