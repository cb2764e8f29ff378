"""Gradients of `scatter_embeddings` and `embed_tokens`.

The gradient of a row is the sum of the gradients of its tokens. A plane is `inputs_embeds` or one deepstack
level. Each Function writes one plane, so that the plane may be a view: torch refuses a view among several
outputs that were written in place. Each plane is placed from its own columns of the rows.
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
    levels: Tensor | Sequence[Tensor],
    num_packed: int | None,
    items: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
) -> None:
    """`scatter_embeddings` on tensors, differentiable in all tensors except `runs`.

    An element of `levels` is shaped like `inputs_embeds` or ``(T, H)``. If `num_packed` is not None, the
    levels are packed: ``(num_packed, H)``.
    """
    hidden = inputs_embeds.shape[-1]
    level_runs = _runs_of_levels(runs, num_packed)
    _write(inputs_embeds, runs, scale, [rows[:, :hidden] for rows in items])
    _scatter_levels(levels, hidden, items, level_runs, scale)


def embed(
    out: Tensor,
    levels: Tensor | Sequence[Tensor],
    num_packed: int | None,
    input_ids: Tensor,
    weight: Tensor,
    items: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
    text_scale: float | None,
) -> Tensor:
    """`embed_tokens` on tensors, differentiable in `weight` and the items. Returns `out`.

    `levels` and `num_packed` are as in `scatter`.
    """
    hidden = out.shape[-1]
    level_runs = _runs_of_levels(runs, num_packed)
    # Return the result of `apply`, not `out`: Dynamo of torch 2.9 records a gradient only for the result.
    columns = [rows[:, :hidden] for rows in items]
    built: Tensor = Embed.apply(out, input_ids, weight, runs, scale, text_scale, *columns)
    for level in range(len(levels) if num_packed is None else 0):
        levels[level].zero_()  # all levels at once are a view that Dynamo of torch 2.9 cannot write to
    _scatter_levels(levels, hidden, items, level_runs, scale)
    return built


def _runs_of_levels(runs: Tensor, num_packed: int | None) -> Tensor:
    return runs if num_packed is None else _ops.rank_runs(runs, num_packed)


def _scatter_levels(
    levels: Tensor | Sequence[Tensor],
    hidden: int,
    items: Sequence[Tensor],
    runs: Tensor,
    scale: float | None,
) -> None:
    for level in range(len(levels)):
        columns = [_columns(rows, hidden, level + 1) for rows in items]
        # Index a tensor of levels here: Dynamo loses the gradient of a view that is older than another write.
        _write(levels[level], runs, scale, columns)


def _write(plane: Tensor, runs: Tensor, scale: float | None, items: Sequence[Tensor]) -> None:
    if torch.compiler.is_compiling():
        # Dynamo of torch 2.13 records a gradient only for the result of `apply`: not for a plane that the
        # caller reads outside of the compiled function, and not for the tensor that the plane is a view of.
        plane.copy_(Scatter.apply(plane.clone(), runs, scale, *items))
    else:
        Scatter.apply(plane, runs, scale, *items)


def _columns(rows: Tensor, hidden: int, level: int) -> Tensor:
    """The columns of a deepstack level: zeros for narrow rows."""
    if rows.shape[1] == hidden:
        return rows.new_zeros(rows.shape)
    return rows[:, hidden * level : hidden * (level + 1)]


class Scatter(torch.autograd.Function):
    """Write rows of width H to tokens of a plane ``(..., H)`` in place. Returns the plane."""

    @staticmethod
    def forward(ctx: Any, plane: Tensor, runs: Tensor, scale: float | None, *items: Tensor) -> Tensor:
        """Write the rows. Save the runs, and each item's number of rows and dtype, for `backward`."""
        _ops.scatter_embeddings_(plane, None, items, runs, scale)
        ctx.mark_dirty(plane)
        ctx.save_for_backward(runs)
        _remember_items(ctx, scale, items)
        return plane

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the plane (zero at placed tokens) and of each item (from its tokens)."""
        (runs,) = ctx.saved_tensors
        plane_grad = _zero_placed(grad, runs) if ctx.needs_input_grad[0] else None
        return plane_grad, None, None, *_item_gradients(ctx, ctx.needs_input_grad[3:], grad, runs)


class Embed(torch.autograd.Function):
    """Write rows of a weight and of items to all tokens of `out` in place. Returns `out`."""

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
        """Write the rows. Save the runs and ids, the sizes and dtypes, for `backward`."""
        _ops.embed_tokens_(out, None, input_ids, weight, items, runs, scale, text_scale)
        ctx.mark_dirty(out)
        ctx.save_for_backward(runs, input_ids)
        ctx.num_embeddings, ctx.weight_dtype, ctx.text_scale = weight.shape[0], weight.dtype, text_scale
        _remember_items(ctx, scale, items)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients of the weight (from text tokens) and of each item (from its tokens).

        The id of a placed token may be any number. It is clamped to a row of the weight, whose gradient gets
        0 from this token.
        """
        runs, input_ids = ctx.saved_tensors
        weight_grad = None
        if ctx.needs_input_grad[2]:
            text_grad = _zero_placed(grad, runs)
            if ctx.text_scale is not None:
                text_grad = text_grad * torch.tensor(ctx.text_scale, dtype=ctx.weight_dtype, device="cpu")
            ids = input_ids.clamp(0, ctx.num_embeddings - 1)
            weight_grad = torch.ops.aten.embedding_dense_backward(
                text_grad, ids, ctx.num_embeddings, -1, False
            )
            weight_grad = weight_grad.to(ctx.weight_dtype)
        item_grads = _item_gradients(ctx, ctx.needs_input_grad[6:], grad, runs)
        return None, None, weight_grad, None, None, None, *item_grads


def _remember_items(ctx: Any, scale: float | None, items: tuple[Tensor, ...]) -> None:
    ctx.scale = scale
    ctx.num_rows = [item.shape[0] for item in items]
    ctx.dtypes = [item.dtype for item in items]


def _zero_placed(grad: Tensor, runs: Tensor) -> Tensor:
    """A copy of gradients ``(..., H)`` with zeros at the tokens of the runs."""
    unplaced = grad.clone(memory_format=torch.contiguous_format)
    _ops.clear_rows_(unplaced.view(-1, grad.shape[-1]), runs)
    return unplaced


def _item_gradients(ctx: Any, needed: Sequence[bool], grad: Tensor, runs: Tensor) -> list[Tensor | None]:
    if not any(needed):
        return [None] * len(needed)
    rows = _ops.gather_rows(grad, runs, ctx.num_rows, ctx.scale)
    return [
        item_rows.to(dtype) for item_rows, dtype in zip(rows.split(ctx.num_rows), ctx.dtypes, strict=True)
    ]
