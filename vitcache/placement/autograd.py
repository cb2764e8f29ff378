"""Gradients of the two operations: the gradient of a placed row is what arrives at its token.

Each Function writes one plane, so that the plane may be a view: torch refuses a view among several outputs
that were written in place. Deepstack levels are planes of their own, placed from columns of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache.placement import torch_ops  # noqa: F401 - defines the operators

_ops = torch.ops.vitcache


def scatter(
    inputs_embeds: Tensor,
    deepstack: Tensor | None,
    items: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
) -> None:
    """`scatter_embeddings` on tensors, differentiable in all of them."""
    hidden = inputs_embeds.shape[-1]
    Scatter.apply(inputs_embeds, runs, scale, *(rows[:, :hidden] for rows in items))
    _scatter_levels(deepstack, hidden, items, runs, scale)


def embed(
    out: Tensor,
    deepstack: Tensor | None,
    input_ids: Tensor,
    weight: Tensor,
    items: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
    text_scale: float | None,
) -> Tensor:
    """`embed_tokens` on tensors, differentiable in `weight` and the items. Returns `out`."""
    hidden = out.shape[-1]
    # What is returned, not `out`, is what Dynamo of torch 2.9 gives a gradient.
    columns = [rows[:, :hidden] for rows in items]
    built: Tensor = Embed.apply(out, input_ids, weight, runs, scale, text_scale, *columns)
    if deepstack is not None:
        deepstack.zero_()
        _scatter_levels(deepstack, hidden, items, runs, scale)
    return built


def _scatter_levels(
    deepstack: Tensor | None, hidden: int, items: Sequence[Tensor], runs: Tensor, scale: float | None
) -> None:
    if deepstack is None:
        return
    for level in range(deepstack.shape[0]):
        columns = slice(hidden * (level + 1), hidden * (level + 2))
        Scatter.apply(deepstack[level], runs, scale, *(rows[:, columns] for rows in items))


class Scatter(torch.autograd.Function):
    """Rows of width H over tokens of ``(..., H)``, which is written in place and returned."""

    @staticmethod
    def forward(ctx: Any, plane: Tensor, runs: Tensor, scale: float | None, *items: Tensor) -> Tensor:
        """Write, and keep what the way back needs: sizes, not rows."""
        _ops.scatter_embeddings_(plane, None, items, runs, scale)
        ctx.mark_dirty(plane)
        ctx.save_for_backward(runs)
        _remember_items(ctx, scale, items)
        return plane

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The plane gets the gradient of the rows left alone, items that of the rows they placed."""
        (runs,) = ctx.saved_tensors
        kept = _clear(grad, runs) if ctx.needs_input_grad[0] else None
        return kept, None, None, *_item_gradients(ctx, ctx.needs_input_grad[3:], grad, runs)


class Embed(torch.autograd.Function):
    """Rows of a weight and of items over all of `out`, which is written in place and returned."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        input_ids: Tensor,
        weight: Tensor,
        runs: Tensor,
        scale: float | None,
        text_scale: float | None,
        *items: Tensor,
    ) -> Tensor:
        """Write, and keep what the way back needs."""
        _ops.embed_tokens_(out, None, input_ids, weight, items, runs, scale, text_scale)
        ctx.mark_dirty(out)
        ctx.save_for_backward(runs, input_ids)
        ctx.num_embeddings, ctx.weight_dtype, ctx.text_scale = weight.shape[0], weight.dtype, text_scale
        _remember_items(ctx, scale, items)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The weight gets the gradient of text tokens; ids under the runs meet zeros and need only exist."""
        runs, input_ids = ctx.saved_tensors
        weight = None
        if ctx.needs_input_grad[2]:
            text = _clear(grad, runs)
            if ctx.text_scale is not None:
                text = text * torch.tensor(ctx.text_scale, dtype=ctx.weight_dtype, device="cpu")
            ids = input_ids.clamp(0, ctx.num_embeddings - 1)
            weight = torch.ops.aten.embedding_dense_backward(text, ids, ctx.num_embeddings, -1, False)
            weight = weight.to(ctx.weight_dtype)
        items = _item_gradients(ctx, ctx.needs_input_grad[6:], grad, runs)
        return None, None, weight, None, None, None, *items


def _remember_items(ctx: Any, scale: float | None, items: tuple[Tensor, ...]) -> None:
    ctx.scale = scale
    ctx.num_rows = [item.shape[0] for item in items]
    ctx.dtypes = [item.dtype for item in items]


def _clear(grad: Tensor, runs: Tensor) -> Tensor:
    """A copy of ``(..., H)`` gradients with zeros at the tokens under the runs."""
    kept = grad.clone(memory_format=torch.contiguous_format)
    _ops.clear_rows_(kept.view(-1, grad.shape[-1]), runs)
    return kept


def _item_gradients(ctx: Any, needed: Sequence[bool], grad: Tensor, runs: Tensor) -> list[Tensor | None]:
    if not any(needed):
        return [None] * len(needed)
    rows = _ops.gather_rows(grad, runs, ctx.num_rows, ctx.scale)
    return [part.to(dtype) for part, dtype in zip(rows.split(ctx.num_rows), ctx.dtypes, strict=True)]
