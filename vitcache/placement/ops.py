"""`scatter_embeddings` and `embed_tokens`: rows of images into ``inputs_embeds``, in place and in one pass.

Eager calls without gradients go straight to what `dispatch` chooses for the device. Gradients and
torch.compile go through the operators of `torch_ops`; those take tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation
from vitcache.placement import autograd, dispatch
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.placement_table import PlacementTable
from vitcache.placement.runs import check_lists, list_runs
from vitcache.rows import KINDS, check_layout


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
    scale = _check_scale("scale", scale)
    if _is_traced(inputs_embeds):
        _refuse_store(store, "torch.compile")
        runs, tensors = _as_tensors(embeddings, spans)
        if _needs_grad(inputs_embeds, deepstack, *tensors):
            autograd.scatter(inputs_embeds, deepstack, tensors, runs, scale)
        else:
            torch.ops.vitcache.scatter_embeddings_(inputs_embeds, deepstack, tensors, runs, scale)
        return inputs_embeds
    destination = Destination("inputs_embeds", inputs_embeds, deepstack)
    if isinstance(embeddings, PlacementTable):
        _check_table_call(spans, inputs_embeds, deepstack)
        _refuse_store(store, "a PlacementTable")
        dispatch.scatter_table(destination, embeddings, scale)
    else:
        dispatch.refuse_capture(inputs_embeds.device)
        placed = Placement(destination, embeddings, spans, store)
        if _needs_grad(inputs_embeds, deepstack, *placed.items):
            _check_writable(inputs_embeds, deepstack)
            _refuse_store(store, "a gradient")
            autograd.scatter(inputs_embeds, deepstack, *placed.tensors_and_runs(), scale)
            return inputs_embeds
        dispatch.scatter(destination, placed, scale)
    _bump_versions(inputs_embeds, deepstack)
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
    _check_embedding(input_ids, weight)
    scale, text_scale = _check_scale("scale", scale), _check_scale("text_scale", text_scale)
    has_out, shape = out is not None, (*input_ids.shape, weight.shape[1])
    if out is None:
        out = weight.new_empty(shape)
    elif not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor, it is {type(out).__name__}")
    elif out.shape != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, it must be {tuple(shape)}")
    elif out.device != weight.device:
        raise ValueError(f"out is on {out.device}, weight is on {weight.device}")
    if _is_traced(weight):
        _refuse_store(store, "torch.compile")
        runs, tensors = _as_tensors(embeddings, spans)
        if _needs_grad(weight, deepstack, *tensors):
            _refuse_out(has_out)
            return autograd.embed(out, deepstack, input_ids, weight, tensors, runs, scale, text_scale)
        torch.ops.vitcache.embed_tokens_(out, deepstack, input_ids, weight, tensors, runs, scale, text_scale)
        return out
    input_ids, weight = input_ids.resolve_neg(), weight.resolve_neg()
    destination = Destination("out", out, deepstack)
    if has_out or deepstack is not None:  # what was allocated here lies apart from everything
        destination.check_apart_from("weight", weight)
        destination.check_apart_from("input_ids", input_ids)
    if isinstance(embeddings, PlacementTable):
        _check_table_call(spans, weight, out, deepstack)
        _refuse_store(store, "a PlacementTable")
        dispatch.embed_table(destination, input_ids, weight, embeddings, scale, text_scale)
    else:
        dispatch.refuse_capture(out.device)
        placed = Placement(destination, embeddings, spans, store)
        if _needs_grad(weight, out, deepstack, *placed.items):
            _refuse_out(has_out)
            _check_writable(deepstack)
            _refuse_store(store, "a gradient")
            items, runs = placed.tensors_and_runs()
            return autograd.embed(out, deepstack, input_ids, weight, items, runs, scale, text_scale)
        dispatch.embed(destination, input_ids, weight, placed, scale, text_scale)
    _bump_versions(out, deepstack)
    return out


def _is_traced(tensor: Any) -> bool:
    """Whether a call is being traced, or a tensor has no memory of its own: the operators know what to do."""
    if torch.compiler.is_compiling():
        return True
    if not isinstance(tensor, Tensor) or type(tensor) in (Tensor, torch.nn.Parameter):
        return isinstance(tensor, Tensor) and tensor.device.type == "meta"
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def _check_scale(name: str, value: Any) -> float | None:
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number or None, it is {type(value).__name__}")
    return float(value)


def _check_writable(*written: Tensor | None) -> None:
    """What autograd lets nobody write in place, said before anything is written: torch says it afterwards."""
    kinds = torch._C._autograd.CreationMeta
    for tensor in written:
        if tensor is None:
            continue
        if tensor.is_inference():
            raise RuntimeError("an inference tensor cannot be written where gradients are recorded")
        base = tensor if tensor._base is None else tensor._base
        if tensor.requires_grad and base.is_leaf:
            raise RuntimeError("a leaf that requires grad, or a view of one, cannot be written in place")
        kind = torch._C._autograd._get_creation_meta(tensor) if tensor._is_view() else kinds.DEFAULT
        if kind != kinds.DEFAULT:
            raise RuntimeError(f"a view of kind {kind.name} cannot be written where gradients are recorded")


def _refuse_out(has_out: bool) -> None:
    if has_out:
        raise ValueError("embed_tokens with out= has no gradients; leave out= away or use torch.no_grad()")


def _refuse_store(store: Any, what: str) -> None:
    if store is not None:
        raise ValueError(f"store= does not go with {what}")


def _check_table_call(spans: Any, *written: Tensor | None) -> None:
    if spans is not None:
        raise ValueError("a PlacementTable holds its spans: pass None for spans")
    if _needs_grad(*written):
        raise ValueError("a PlacementTable has no gradients: use torch.no_grad()")


def _check_embedding(input_ids: Tensor, weight: Tensor) -> None:
    for name, value in (("input_ids", input_ids), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, it is {type(value).__name__}")
        check_layout(name, value)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids are {input_ids.dtype}, they must be int64 or int32")
    if input_ids.dim() not in (1, 2):
        raise ValueError(f"input_ids have {input_ids.dim()} dimensions, they must be (T,) or (B, T)")
    if weight.dtype not in KINDS:
        raise TypeError(f"weight is {weight.dtype}, it must be float32, float16 or bfloat16")
    if weight.dim() != 2:
        raise ValueError(f"weight has {weight.dim()} dimensions, it must be (V, H)")
    if weight.stride(1) != 1 and weight.shape[1] > 1:
        raise ValueError(f"weight has stride {weight.stride(1)} between elements of a row, it must be 1")
    if input_ids.device != weight.device:
        raise ValueError(f"input_ids are on {input_ids.device}, weight is on {weight.device}")


def _needs_grad(*values: Any) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )


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


def _bump_versions(*written: Tensor | None) -> None:
    """Tell autograd that tensors were written behind its back, so that a stale saved tensor is an error."""
    for tensor in written:
        if tensor is not None and not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
