"""`scatter_embeddings` and `embed_tokens` write image rows into ``inputs_embeds``.

An eager call is a `ScatterCall` or an `EmbedCall`. A call with gradients or under torch.compile uses the
operators of `torch_ops`, which take only tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation
from vitcache.placement import autograd
from vitcache.placement.call_checks import (
    check_embedding,
    check_scale,
    is_traced,
    make_out,
    needs_grad,
    refuse_out,
    refuse_store,
)
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.placement_table import PlacementTable
from vitcache.placement.runs import check_lists, list_runs
from vitcache.placement.scatter_call import ScatterCall


def scatter_embeddings(
    inputs_embeds: Tensor,
    embeddings: Sequence[Tensor | Lease | Reservation] | Tensor | PlacementTable,
    spans: Any,
    *,
    deepstack: Tensor | None = None,
    scale: float | None = None,
    store: Sequence[Reservation | None] | None = None,
) -> Tensor:
    """Write image rows to their tokens in `inputs_embeds`, in place.

    Parameters
    ----------
    inputs_embeds
        ``(T, H)`` or ``(B, T, H)``, float32, float16 or bfloat16. Spans index the flattened ``B * T`` tokens.
        Rows may have any stride. The elements of a row must be adjacent.
    embeddings
        One entry per item: a tensor ``(n, W)`` on the device of `inputs_embeds`, a pinned CPU tensor
        ``(n, W)``, a `Lease`, or a `Reservation` whose rows were written. Each entry may be float32, float16
        or bfloat16. ``W`` is ``H``, or ``H * (1 + L)`` with `deepstack`.
        In place of the list: one packed tensor ``(N, W)``, with `spans` as an array; or a `PlacementTable`,
        which contains its spans. Only a `PlacementTable` can be captured in a CUDA graph.
    spans
        One entry per item: an int (the first token of the whole item), a `Span`, or a list of `Span`.
        For a packed tensor: an int64 array or CPU tensor ``(n, 3)`` of start, length and source_start.
        For a `PlacementTable`: None.
    deepstack
        ``(L, T, H)`` or ``(L, B, T, H)``, of the dtype and device of `inputs_embeds`. Columns
        ``[H * (l + 1), H * (l + 2))`` of a row are written to ``deepstack[l]``.
    scale
        Multiplies every column of the image rows, in float32. None: no multiplication.
    store
        One entry per item: a `Reservation` of a cache, or None. The same launch also writes all rows of the
        item to the pages of the reservation, even rows that are in no span. Stored rows are rounded to the
        cache's dtype and not scaled. The launch places the rounded rows, so that a later hit places the same
        bits. After this call, call `Reservation.commit`.

    Returns
    -------
    Tensor
        `inputs_embeds` itself. Tokens outside the spans keep their values, also in `deepstack`.

    Raises
    ------
    IndexError
        If a span does not fit in the ``B * T`` tokens.
    ValueError
        If two spans overlap. If an item has fewer rows than its spans need. If the width or the device of an
        item differs from that of the destination. If a reservation in `store` differs from its item in the
        number of rows, from the destination in width or device, or from another reservation in dtype. If one
        reservation stores two items. If a written tensor shares memory with a read tensor or with another
        written tensor. If `store` is combined with `torch.compile`, a `PlacementTable`, or a call that
        records gradients. If a `PlacementTable` is combined with spans, or with a call that records
        gradients.
    TypeError
        If an entry of `embeddings` is not a tensor, a `Lease` or a `Reservation`, or its dtype is not
        float32, float16 or bfloat16. If an entry of `spans` is not an int, a `Span` or a list of `Span`. If
        `scale` is not a real number. If `deepstack` and `inputs_embeds` differ in dtype.
    RuntimeError
        If a lease was released. If a reservation was committed or cancelled. If a CUDA graph is being
        captured and `embeddings` is not a `PlacementTable`. If a `PlacementTable` was never updated. If
        autograd records the call and forbids an in-place write to the destination (an inference tensor, a
        leaf that requires grad, a view of a leaf, or one of several views).

    Notes
    -----
    If the call raises, nothing is written. On CUDA the call queues its work on the current stream, and the
    host does not wait for it. On the CPU the rows are written when the call returns. Any thread may call this
    function. It is differentiable in `embeddings`, `inputs_embeds` and `deepstack`. Rows of a lease get no
    gradient.

    Examples
    --------
    Rows 1 and 2 of an image replace tokens 3 and 4:

    >>> import torch
    >>> from vitcache import Span, scatter_embeddings
    >>> inputs_embeds = torch.zeros(5, 2)
    >>> image = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    >>> scatter_embeddings(inputs_embeds, [image], [Span(3, 2, source_start=1)])
    tensor([[0., 0.],
            [0., 0.],
            [0., 0.],
            [2., 2.],
            [3., 3.]])
    """
    if is_traced(inputs_embeds):
        return _scatter_traced(inputs_embeds, embeddings, spans, deepstack, scale, store)
    call = ScatterCall(inputs_embeds, deepstack, scale)
    return call.run(embeddings, spans, store)


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
    """Build ``inputs_embeds`` in one pass: rows of `weight` at text tokens, image rows at the spans.

    Parameters
    ----------
    input_ids
        ``(T,)`` or ``(B, T)``, int64 or int32, on the weight's device. The id of a token in a span may be any
        number; it is not looked up. The ids of all other tokens, the text tokens, must be in ``[0, V)``. On
        the CPU the call checks this. On CUDA the caller must ensure it, because for a check the host would
        have to wait.
    weight
        The token embedding ``(V, H)``, float32, float16 or bfloat16.
    embeddings, spans, scale, store
        As in `scatter_embeddings`.
    out
        ``(T, H)`` or ``(B, T, H)``, float32, float16 or bfloat16. None: allocated in the weight's dtype.
    deepstack
        As in `scatter_embeddings`, but every element is written: zeros at text tokens.
    text_scale
        Multiplies the rows of text tokens. The factor and the product are rounded to the weight's dtype, as
        in a model with a scaled embedding (Gemma 3: ``sqrt(H)``). None: no multiplication.

    Returns
    -------
    Tensor
        `out`, or the allocated tensor, of shape ``input_ids.shape + (H,)``.

    Raises
    ------
    IndexError
        If a span does not fit in the tokens. On the CPU, if the id of a text token is not in ``[0, V)``.
    ValueError
        As in `scatter_embeddings`. If the shape or device of an argument is not as above. If `out` is given
        and the call records gradients.
    TypeError
        As in `scatter_embeddings`. If `input_ids` is not an int64 or int32 tensor. If `weight` or `out` is
        not a tensor of float32, float16 or bfloat16.
    RuntimeError
        As in `scatter_embeddings`.

    Notes
    -----
    Streams and threads: as in `scatter_embeddings`. The call is differentiable in `weight` and `embeddings`,
    also through `deepstack`.

    Examples
    --------
    Token 1 is a placeholder for an image of one row:

    >>> import torch
    >>> from vitcache import embed_tokens
    >>> weight = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    >>> input_ids = torch.tensor([2, 99, 1])
    >>> embed_tokens(input_ids, weight, [torch.tensor([[7.0, 8.0]])], [1])
    tensor([[2., 2.],
            [7., 8.],
            [1., 1.]])
    """
    if is_traced(weight):
        return _embed_traced(input_ids, weight, embeddings, spans, out, deepstack, scale, text_scale, store)
    call = EmbedCall(input_ids, weight, out, deepstack, scale, text_scale)
    return call.run(embeddings, spans, store)


def _scatter_traced(
    inputs_embeds: Tensor,
    embeddings: Any,
    spans: Any,
    deepstack: Tensor | None,
    scale: float | None,
    store: Any,
) -> Tensor:
    """`scatter_embeddings` through the operators, for calls that torch traces."""
    scale = check_scale("scale", scale)
    refuse_store(store, "torch.compile")
    runs, tensors = _as_tensors(embeddings, spans)
    if needs_grad(inputs_embeds, deepstack, *tensors):
        autograd.scatter(inputs_embeds, deepstack, tensors, runs, scale)
    else:
        torch.ops.vitcache.scatter_embeddings_(inputs_embeds, deepstack, tensors, runs, scale)
    return inputs_embeds


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
    """`embed_tokens` through the operators, for calls that torch traces."""
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
    """The operators' arguments, runs ``(n, 4)`` and one tensor per item, in code that Dynamo can trace."""
    if isinstance(embeddings, Tensor):
        spans = spans if isinstance(spans, Tensor) else torch.as_tensor(spans, device="cpu")
        return torch.nn.functional.pad(spans, (1, 0)), [embeddings]
    check_lists(embeddings, spans)
    for item, rows in enumerate(embeddings):
        if not isinstance(rows, Tensor):
            raise TypeError(f"item {item} must be a tensor in a compiled call, got {type(rows).__name__}")
    runs = list_runs(spans, [rows.shape[0] for rows in embeddings])
    return torch.tensor(runs, dtype=torch.int64, device="cpu").reshape(-1, 4), embeddings
