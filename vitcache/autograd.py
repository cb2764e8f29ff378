"""Gradients of the two operations: the gradient of a placed row is what arrives at its token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.vitcache


class Scatter(torch.autograd.Function):
    """`scatter_embeddings` on tensors. Returns its two destinations, written in place."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs_embeds: Tensor,
        deepstack: Tensor | None,
        runs: Tensor,
        scale: float | None,
        *items: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Write, and keep what the way back needs: sizes, not rows."""
        _ops.scatter_embeddings_(inputs_embeds, deepstack, items, runs, scale)
        _remember(ctx, inputs_embeds, deepstack, runs, scale, items)
        return inputs_embeds, deepstack

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_deepstack: Tensor | None) -> tuple[Any, ...]:
        """Destinations get the gradient of the rows that were left alone, items that of the rows they
        placed.
        """
        (runs,) = ctx.saved_tensors
        kept = _clear(grad, grad, runs)
        kept_deepstack = None if grad_deepstack is None else _clear(grad_deepstack, grad, runs)
        return kept, kept_deepstack, None, None, *_item_gradients(ctx, grad, grad_deepstack, runs)


class Embed(torch.autograd.Function):
    """`embed_tokens` on tensors. Returns `out`; `deepstack` is written beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        deepstack: Tensor | None,
        input_ids: Tensor,
        weight: Tensor,
        runs: Tensor,
        scale: float | None,
        text_scale: float | None,
        *items: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Write, and keep what the way back needs."""
        _ops.embed_tokens_(out, deepstack, input_ids, weight, items, runs, scale, text_scale)
        _remember(ctx, out, deepstack, runs, scale, items, input_ids)
        ctx.num_embeddings, ctx.weight_dtype, ctx.text_scale = weight.shape[0], weight.dtype, text_scale
        return out, deepstack

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_deepstack: Tensor | None) -> tuple[Any, ...]:
        """The weight gets the gradient of the text tokens; ids under the runs meet zeros, so they only
        must be rows.
        """
        runs, input_ids = ctx.saved_tensors
        text = _clear(grad, grad, runs)
        if ctx.text_scale is not None:
            text = text * torch.tensor(ctx.text_scale, dtype=ctx.weight_dtype)
        ids = input_ids.clamp(0, ctx.num_embeddings - 1)
        weight = torch.ops.aten.embedding_dense_backward(text, ids, ctx.num_embeddings, -1, False)
        items = _item_gradients(ctx, grad, grad_deepstack, runs)
        return None, None, None, weight.to(ctx.weight_dtype), None, None, None, *items


def _remember(
    ctx: Any,
    written: Tensor,
    deepstack: Tensor | None,
    runs: Tensor,
    scale: float | None,
    items: tuple[Tensor, ...],
    *saved: Tensor,
) -> None:
    ctx.mark_dirty(*([written] if deepstack is None else [written, deepstack]))
    ctx.save_for_backward(runs, *saved)
    ctx.scale = scale
    ctx.num_rows = [item.shape[0] for item in items]
    ctx.dtypes = [item.dtype for item in items]


def _clear(grad: Tensor, like: Tensor, runs: Tensor) -> Tensor:
    """A copy of `grad` with zeros at the tokens under the runs; tokens are the dimensions of `like` but
    its last.
    """
    kept = grad.clone(memory_format=torch.contiguous_format)
    levels = () if grad.dim() == like.dim() else (grad.shape[0],)
    _ops.clear_rows_(kept.view(*levels, -1, grad.shape[-1]), runs)
    return kept


def _item_gradients(ctx: Any, grad: Tensor, grad_deepstack: Tensor | None, runs: Tensor) -> list[Tensor]:
    rows = _ops.gather_rows(grad, grad_deepstack, runs, ctx.num_rows, ctx.scale)
    return [part.to(dtype) for part, dtype in zip(rows.split(ctx.num_rows), ctx.dtypes, strict=True)]
