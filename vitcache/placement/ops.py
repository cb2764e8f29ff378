"""`scatter_embeddings` and `embed_tokens` write image rows into ``inputs_embeds``.

An eager call is a `ScatterCall` or an `EmbedCall`. A call with gradients or under torch.compile uses the
operators of `torch_ops`, which take only tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation
from vitcache.placement import traced
from vitcache.placement.call_checks import is_traced
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.placement_table import PlacementTable
from vitcache.placement.scatter_call import ScatterCall


def scatter_embeddings(
    inputs_embeds: Tensor,
    embeddings: Sequence[Tensor | Lease | Reservation] | Tensor | PlacementTable,
    spans: Any,
    *,
    deepstack: Tensor | Sequence[Tensor] | None = None,
    deepstack_rows: Tensor | None = None,
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
        or bfloat16. ``W`` is ``H``, or ``H * (1 + L)`` with L deepstack levels.
        In place of the list: one packed tensor ``(N, W)``, with `spans` as an array; or a `PlacementTable`,
        which contains its spans. Only a `PlacementTable` can be captured in a CUDA graph.
    spans
        One entry per item: an int (the first token of the whole item), a `Span`, or a list of `Span`.
        For a packed tensor: an int64 array or CPU tensor ``(n, 3)`` of start, length and source_start.
        For a `PlacementTable`: None.
    deepstack
        L deepstack levels, of the dtype and device of `inputs_embeds`. Columns ``[H * (l + 1), H * (l + 2))``
        of a row are written to level ``l``. One of these forms; the first form that fits a tensor's shape is
        used:

        - a tensor ``(L, T, H)`` or ``(L, B, T, H)``, also a view such as
          ``buffer.view(T, L, H).permute(1, 0, 2)``;
        - columns: a tensor ``(T, L * H)`` or ``(B, T, L * H)``, with level ``l`` in columns
          ``[H * l, H * (l + 1))``;
        - a list of L tensors ``(T, H)`` or ``(B, T, H)``, whose rows may have different strides.

        With `inputs_embeds` ``(B, T, H)`` and ``B > 1``, ``(B, T, H)`` is one level in columns.
    deepstack_rows
        ``(L, N, H)``, in place of `deepstack`: the levels of the ``N`` tokens in the spans, in the order of
        the tokens. Levels of other tokens are not stored. It cannot be combined with a `PlacementTable`.
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
        reservation stores two items. If the shape of `deepstack` fits no form. If the number of rows in
        `deepstack_rows` is not the number of tokens in the spans. If `deepstack_rows` is combined with
        `deepstack` or with a `PlacementTable`. If a written tensor shares memory with a read tensor or with
        another written tensor. If `store` is combined with `torch.compile`, a `PlacementTable`, or a call
        that records gradients. If a `PlacementTable` is combined with spans, or with a call that records
        gradients.
    TypeError
        If an entry of `embeddings` is not a tensor, a `Lease` or a `Reservation`, or its dtype is not
        float32, float16 or bfloat16. If an entry of `spans` is not an int, a `Span` or a list of `Span`. If
        `scale` is not a real number. If the levels and `inputs_embeds` differ in dtype.
    RuntimeError
        If a lease was released. If a reservation was committed or cancelled. If a CUDA graph is being
        captured and `embeddings` is not a `PlacementTable`. If a `PlacementTable` was never updated. If
        autograd records the call and forbids an in-place write to the destination (an inference tensor, a
        leaf that requires grad, a view of a leaf, or one of several views).

    Notes
    -----
    If the call raises, nothing is written. On CUDA the call queues its work on the current stream, and the
    host does not wait for it. On the CPU the rows are written when the call returns. Any thread may call this
    function. It is differentiable in `embeddings`, `inputs_embeds` and the deepstack levels. Rows of a lease
    get no gradient.

    Under torch.compile with gradients, levels in a list must not be slices of one buffer, unless the compiled
    function itself makes the slices: torch drops the gradients of such slices without an error.

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

    An image of one row with two deepstack levels, which are written to separate tensors, to columns of one
    tensor, and to rows for image tokens alone:

    >>> row = torch.tensor([[1.0, 1.0, 2.0, 2.0, 3.0, 3.0]])
    >>> first, second = torch.zeros(3, 2), torch.zeros(3, 2)
    >>> _ = scatter_embeddings(torch.zeros(3, 2), [row], [1], deepstack=[first, second])
    >>> second
    tensor([[0., 0.],
            [3., 3.],
            [0., 0.]])
    >>> columns = torch.zeros(3, 4)
    >>> _ = scatter_embeddings(torch.zeros(3, 2), [row], [1], deepstack=columns)
    >>> columns
    tensor([[0., 0., 0., 0.],
            [2., 2., 3., 3.],
            [0., 0., 0., 0.]])
    >>> rows = torch.zeros(2, 1, 2)
    >>> _ = scatter_embeddings(torch.zeros(3, 2), [row], [1], deepstack_rows=rows)
    >>> rows
    tensor([[[2., 2.]],
    <BLANKLINE>
            [[3., 3.]]])
    """
    if is_traced(inputs_embeds):
        return traced.scatter(inputs_embeds, embeddings, spans, deepstack, deepstack_rows, scale, store)
    call = ScatterCall(inputs_embeds, deepstack, scale, deepstack_rows=deepstack_rows)
    return call.run(embeddings, spans, store)


def embed_tokens(
    input_ids: Tensor,
    weight: Tensor,
    embeddings: Sequence[Tensor | Lease | Reservation] | Tensor | PlacementTable,
    spans: Any,
    *,
    out: Tensor | None = None,
    deepstack: Tensor | Sequence[Tensor] | None = None,
    deepstack_rows: Tensor | None = None,
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
    deepstack_rows
        As in `scatter_embeddings`. Every element is written.
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

    With one deepstack level, text tokens get zeros in the level:

    >>> level = torch.empty(3, 2)
    >>> row = torch.tensor([[7.0, 8.0, 5.0, 6.0]])
    >>> _ = embed_tokens(input_ids, weight, [row], [1], deepstack=[level])
    >>> level
    tensor([[0., 0.],
            [5., 6.],
            [0., 0.]])
    """
    if is_traced(weight):
        return traced.embed(
            input_ids, weight, embeddings, spans, out, deepstack, deepstack_rows, scale, text_scale, store
        )
    call = EmbedCall(input_ids, weight, out, deepstack, scale, text_scale, deepstack_rows=deepstack_rows)
    return call.run(embeddings, spans, store)
