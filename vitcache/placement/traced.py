"""`scatter_embeddings` and `embed_tokens` through the operators of `torch_ops`, for traced calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache.placement import autograd
from vitcache.placement.call_checks import (
    check_embedding,
    check_scale,
    make_out,
    needs_grad,
    refuse_out,
    refuse_store,
)
from vitcache.placement.levels import index_levels, level_arguments, read_levels
from vitcache.placement.runs import check_lists, list_runs
from vitcache.rows import check_extent


def scatter(
    inputs_embeds: Tensor,
    embeddings: Any,
    spans: Any,
    deepstack: Tensor | Sequence[Tensor] | None,
    deepstack_rows: Tensor | None,
    scale: float | None,
    store: Any,
) -> Tensor:
    """`scatter_embeddings`. Dynamo can trace it."""
    scale = check_scale("scale", scale)
    refuse_store(store, "torch.compile")
    runs, tensors = _as_tensors(embeddings, spans)
    if needs_grad(inputs_embeds, *level_arguments(deepstack, deepstack_rows), *tensors):
        levels = index_levels("inputs_embeds", inputs_embeds, deepstack, deepstack_rows)
        _check_widths(tensors, inputs_embeds.shape[-1], len(levels))
        num_packed = None if deepstack_rows is None else deepstack_rows.shape[1]
        autograd.scatter(inputs_embeds, levels, num_packed, tensors, runs, scale)
        return inputs_embeds
    level_tensor, listed = read_levels("inputs_embeds", inputs_embeds, deepstack, deepstack_rows)
    if listed:
        torch.ops.vitcache.scatter_listed_(inputs_embeds, listed, tensors, runs, scale)
    else:
        is_packed = deepstack_rows is not None
        torch.ops.vitcache.scatter_embeddings_(inputs_embeds, level_tensor, tensors, runs, scale, is_packed)
    return inputs_embeds


def embed(
    input_ids: Tensor,
    weight: Tensor,
    embeddings: Any,
    spans: Any,
    out: Tensor | None,
    deepstack: Tensor | Sequence[Tensor] | None,
    deepstack_rows: Tensor | None,
    scale: float | None,
    text_scale: float | None,
    store: Any,
) -> Tensor:
    """`embed_tokens`. Dynamo can trace it."""
    check_embedding(input_ids, weight)
    scale, text_scale = check_scale("scale", scale), check_scale("text_scale", text_scale)
    has_out, out = out is not None, make_out(input_ids, weight, out)
    refuse_store(store, "torch.compile")
    runs, tensors = _as_tensors(embeddings, spans)
    if needs_grad(weight, *level_arguments(deepstack, deepstack_rows), *tensors):
        refuse_out(has_out)
        levels = index_levels("out", out, deepstack, deepstack_rows)
        _check_widths(tensors, out.shape[-1], len(levels))
        num_packed = None if deepstack_rows is None else deepstack_rows.shape[1]
        return autograd.embed(out, levels, num_packed, input_ids, weight, tensors, runs, scale, text_scale)
    level_tensor, listed = read_levels("out", out, deepstack, deepstack_rows)
    ops, arguments = torch.ops.vitcache, (input_ids, weight, tensors, runs, scale, text_scale)
    if listed:
        ops.embed_listed_(out, listed, *arguments)
    else:
        ops.embed_tokens_(out, level_tensor, *arguments, deepstack_rows is not None)
    return out


def _check_widths(items: Sequence[Tensor], hidden: int, levels: int) -> None:
    """Raise ValueError if an item has a wrong width: gradients are computed from slices of its columns."""
    width = hidden * (1 + levels)
    for item, rows in enumerate(items):
        if rows.dim() != 2 or rows.shape[1] != width:
            raise ValueError(f"item {item} has shape {tuple(rows.shape)}, it must be (rows, {width})")


def _as_tensors(embeddings: Any, spans: Any) -> tuple[Tensor, Sequence[Tensor]]:
    """The operators' arguments, runs ``(n, 4)`` and one tensor per item, in code that Dynamo can trace."""
    if isinstance(embeddings, Tensor):
        # No other object: torch would read the memory that its `__array_interface__` names.
        if not isinstance(spans, (Tensor, np.ndarray, list, tuple)):
            raise TypeError(f"spans of one packed tensor must be an array (n, 3), got {type(spans).__name__}")
        if isinstance(spans, Tensor) and not torch.compiler.is_compiling():
            check_extent("spans", spans)
        spans = spans if isinstance(spans, Tensor) else torch.as_tensor(spans, device="cpu")
        return torch.nn.functional.pad(spans, (1, 0)), [embeddings]
    check_lists(embeddings, spans)
    for item, rows in enumerate(embeddings):
        if not isinstance(rows, Tensor):
            raise TypeError(f"item {item} must be a tensor in a compiled call, got {type(rows).__name__}")
    runs = list_runs(spans, [rows.shape[0] for rows in embeddings])
    return torch.tensor(runs, dtype=torch.int64, device="cpu").reshape(-1, 4), embeddings
