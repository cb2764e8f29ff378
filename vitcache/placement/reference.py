"""Every operation in plain torch. Kernels are compared with it; the CPU uses it for casts and scales."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

Run = tuple[int, int, int, int]  # item, first token, length, first row of the item


def scatter_embeddings(
    out: Tensor,
    deepstack: Tensor | None,
    items: Sequence[Sequence[Tensor]],
    runs: Iterable[Run],
    scale: float | None,
) -> None:
    """Write rows of `items` to tokens of `out` and `deepstack`, in place.

    Parameters
    ----------
    out
        ``(T, H)``, any floating dtype.
    deepstack
        ``(L, T, H)`` or None. ``deepstack[l]`` gets columns ``[H * (l + 1), H * (l + 2))`` of a row.
    items
        Per item, the tensors ``(n, W)`` that contain its rows in order, with ``W == H`` or ``H * (1 + L)``.
    runs
        ``(item, first token, length, first row)``. The caller has checked them.
    scale
        Multiplies every image column in float32, before the cast to the destination's dtype. None: rows are
        only cast.
    """
    hidden = out.shape[1]
    for item, start, length, source_start in runs:
        token = start
        for rows in _rows(items[item], source_start, length):
            tokens = slice(token, token + len(rows))
            _write(out[tokens], rows[:, :hidden], scale)
            for level, plane in enumerate(() if deepstack is None else deepstack, 1):
                _write(plane[tokens], rows[:, hidden * level : hidden * (level + 1)], scale)
            token = tokens.stop


def embed_tokens(
    out: Tensor,
    deepstack: Tensor | None,
    input_ids: Tensor,
    weight: Tensor,
    items: Sequence[Sequence[Tensor]],
    runs: Sequence[Run],
    scale: float | None,
    text_scale: float | None,
) -> None:
    """Write every token of `out`: rows of `weight` at text tokens, rows of `items` at the runs.

    `input_ids` is ``(T,)``. Ids of tokens in a run are never looked up; all other ids must be in
    ``[0, len(weight))``. `text_scale` is rounded to the weight's dtype and multiplies in that dtype, as in a
    model with a scaled embedding. `deepstack` gets zeros at text tokens. The other arguments are as in
    `scatter_embeddings`.
    """
    for start, stop in _gaps(runs, len(out)):
        ids = input_ids[start:stop].to(torch.int64)
        if text_scale is None and out.dtype == weight.dtype:
            torch.index_select(weight, 0, ids, out=out[start:stop])
        else:
            rows = weight[ids]
            out[start:stop] = (
                rows
                if text_scale is None
                else rows * torch.tensor(text_scale, dtype=weight.dtype, device="cpu")
            )
        if deepstack is not None:
            deepstack[:, start:stop] = 0
    scatter_embeddings(out, deepstack, items, runs, scale)


def _write(destination: Tensor, rows: Tensor, scale: float | None) -> None:
    destination.copy_(rows if scale is None else rows.to(torch.float32) * scale)


def _rows(segments: Sequence[Tensor], first: int, length: int) -> Iterator[Tensor]:
    """Views of rows ``[first, first + length)``, where row numbers continue from segment to segment."""
    for segment in segments:
        if length == 0:
            return
        rows = segment[first : first + length]
        first = max(first - len(segment), 0)
        length -= len(rows)
        yield rows


def _gaps(runs: Sequence[Run], num_tokens: int) -> Iterator[tuple[int, int]]:
    """The token ranges that no run covers."""
    token = 0
    for _, start, length, _ in sorted(runs, key=lambda run: run[1]):
        if start > token:
            yield token, start
        token = max(token, start + length)
    if token < num_tokens:
        yield token, num_tokens
