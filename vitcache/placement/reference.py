"""Every operation in plain torch. Kernels are compared with it; the CPU uses it for casts and scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Run = tuple[int, int, int, int]  # item, first token, length, first row of the item


def scatter_embeddings(
    out: Tensor,
    deepstack: Tensor | Sequence[Tensor] | None,
    items: Sequence[Sequence[Tensor]],
    runs: Sequence[Run],
    scale: float | None,
    *,
    is_packed: bool = False,
) -> None:
    """Write rows of `items` to tokens of `out` and `deepstack`, in place.

    Parameters
    ----------
    out
        ``(T, H)``, any floating dtype.
    deepstack
        ``(L, T, H)``, a list of L tensors ``(T, H)``, or None. ``deepstack[l]`` gets columns
        ``[H * (l + 1), H * (l + 2))`` of a row.
    items
        Per item, the tensors ``(n, W)`` that contain its rows in order, with ``W == H * (1 + L)``, or
        ``W == H`` for a narrow item, whose tokens get zeros in `deepstack`.
    runs
        ``(item, first token, length, first row)``. The caller has checked them.
    scale
        Multiplies every image column in float32, before the cast to the destination's dtype. None: rows are
        only cast.
    is_packed
        The levels have a row per placed token, in the order of the tokens.
    """
    hidden = out.shape[1]
    first_rows = first_ranks(runs) if is_packed else [start for _, start, _, _ in runs]
    for (item, start, length, source_start), first_row in zip(runs, first_rows, strict=True):
        num_written = 0
        for rows in _rows(items[item], source_start, length):
            token, row, num_rows = start + num_written, first_row + num_written, len(rows)
            _write(out[token : token + num_rows], rows[:, :hidden], scale)
            for level, plane in enumerate(() if deepstack is None else deepstack, 1):
                if rows.shape[1] == hidden:
                    plane[row : row + num_rows] = 0
                else:
                    columns = rows[:, hidden * level : hidden * (level + 1)]
                    _write(plane[row : row + num_rows], columns, scale)
            num_written += num_rows


def embed_tokens(
    out: Tensor,
    deepstack: Tensor | Sequence[Tensor] | None,
    input_ids: Tensor,
    weight: Tensor,
    items: Sequence[Sequence[Tensor]],
    runs: Sequence[Run],
    scale: float | None,
    text_scale: float | None,
    *,
    is_packed: bool = False,
) -> None:
    """Write every token of `out`: rows of `weight` at text tokens, rows of `items` at the runs.

    `input_ids` is ``(T,)``. Ids of tokens in a run are never looked up; all other ids must be in
    ``[0, len(weight))``. `text_scale` is rounded to the weight's dtype and multiplies in that dtype, as in a
    model with a scaled embedding. `deepstack` gets zeros at text tokens; packed levels have no rows for them.
    The other arguments are as in `scatter_embeddings`.
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
        for plane in () if deepstack is None or is_packed else deepstack:
            plane[start:stop] = 0
    scatter_embeddings(out, deepstack, items, runs, scale, is_packed=is_packed)


def first_ranks(runs: Sequence[Run]) -> list[int]:
    """Per run, the number of placed tokens before its first token."""
    ranks, rank = [0] * len(runs), 0
    for number in sorted(range(len(runs)), key=lambda number: runs[number][1]):
        ranks[number] = rank
        rank += runs[number][2]
    return ranks


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
