"""The plain torch truth of every operation: what kernels are compared with, and what runs on the CPU."""

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
    """Write rows of `items` over tokens of `out`, in place, and their further columns over `deepstack`.

    Parameters
    ----------
    out
        ``(T, H)``, any floating dtype.
    deepstack
        ``(L, T, H)`` or None; columns ``[H * (l + 1), H * (l + 2))`` of a row go to ``deepstack[l]``.
    items
        Per item the tensors ``(n, W)`` that hold its rows in order, with ``W == H`` or ``H * (1 + L)``.
    runs
        ``(item, first token, length, first row)``; checked before.
    scale
        Multiplies every image column in float32 before the cast to the destination's dtype; None leaves bits
        alone.
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
    """Write the rows of text tokens from `weight` and those of images from `items` over all of `out`.

    ``input_ids`` is ``(T,)``; ids under a run are never looked up. ``text_scale`` is rounded to the weight's
    dtype and multiplies there, as a model's scaled embedding does. `deepstack` becomes zero at text tokens.
    The ids of text tokens are rows of the weight. The rest is as in `scatter_embeddings`.
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
    """Views of the rows ``[first, first + length)`` of tensors that follow each other."""
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
