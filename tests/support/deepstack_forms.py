"""Every form in which a caller may pass deepstack levels, filled with NaN, and the content of each form."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from placement_cases import FLOAT_DTYPES, expected_scatter, make_rows, poisoned, same_bits
from torch import Tensor

from vitcache import Span, embed_tokens, scatter_embeddings

FORMS = ["levels", "view", "columns", "list", "strided list", "packed"]


def make_levels(
    form: str,
    tokens: tuple[int, ...],
    hidden: int,
    num_levels: int,
    num_placed: int,
    dtype: torch.dtype,
    device: str = "cpu",
) -> dict[str, Any]:
    """The keyword argument of a call whose levels have `tokens`, ``(T,)`` or ``(B, T)``."""
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    num_tokens = torch.Size(tokens).numel()
    if form == "levels":
        return {"deepstack": poisoned(num_levels, *tokens, hidden, **options)}
    if form == "view":
        buffer = poisoned(num_tokens, num_levels, hidden, **options)
        return {"deepstack": buffer.permute(1, 0, 2)}
    if form == "columns":
        return {"deepstack": poisoned(*tokens, num_levels * hidden, **options)}
    if form == "list":
        return {"deepstack": [poisoned(*tokens, hidden, **options) for _ in range(num_levels)]}
    if form == "strided list":
        return {
            "deepstack": tuple(
                poisoned(num_tokens, hidden + 3 * level, **options)[:, level : level + hidden]
                for level in range(num_levels)
            )
        }
    return {"deepstack_rows": poisoned(num_levels, num_placed, hidden, **options)}


def written_levels(form: str, argument: dict[str, Any], hidden: int) -> list[Tensor]:
    """The levels of an argument of `make_levels`: ``(T, H)`` each, or ``(N, H)`` if they are packed."""
    (levels,) = argument.values()
    if form == "columns":
        levels = levels.split(hidden, dim=-1)
    return [level.reshape(-1, hidden) for level in levels]


def expected_levels(form: str, levels: Tensor, placed: Tensor) -> list[Tensor]:
    """`levels` ``(L, T, H)`` as the form contains them. `placed` masks the placed tokens ``(T,)``."""
    return [level[placed] if form == "packed" else level for level in levels]


@st.composite
def scenes(draw):
    """Items, spans that overlap nowhere, in any order, and the options of a call."""
    hidden, num_levels = draw(st.sampled_from([1, 5, 8])), draw(st.integers(1, 3))
    batch, per_batch = draw(st.sampled_from([(None, 14), (1, 14), (2, 7)]))
    tokens = (per_batch,) if batch is None else (batch, per_batch)
    lengths = draw(st.lists(st.integers(0, 3), max_size=5))
    starts, token = [], 0
    for length in lengths:
        token += draw(st.integers(0, 2))
        starts.append(token)
        token += length
    runs = [(start, length) for start, length in zip(starts, lengths, strict=True) if start + length <= 14]
    items, spans = [], []
    for start, length in draw(st.permutations(runs)):
        skipped, padding = draw(st.integers(0, 2)), draw(st.integers(0, 3))
        dtype = draw(st.sampled_from(FLOAT_DTYPES))
        rows = make_rows(skipped + length + 1, hidden * (1 + num_levels) + padding, dtype)
        items.append(rows[:, padding:])
        spans.append([Span(start, length, skipped)])
    return {
        "form": draw(st.sampled_from(FORMS)),
        "tokens": tokens,
        "hidden": hidden,
        "num_levels": num_levels,
        "items": items,
        "spans": spans,
        "dtype": draw(st.sampled_from(FLOAT_DTYPES)),
        "scale": draw(st.sampled_from([None, 0.37])),
        "is_embed": draw(st.booleans()),
    }


def run_scene(form, tokens, hidden, num_levels, items, spans, dtype, scale, is_embed, device="cpu"):
    num_tokens = torch.Size(tokens).numel()
    placed = torch.zeros(num_tokens, dtype=torch.bool)
    for (span,) in spans:
        placed[span.start : span.stop] = True
    argument = make_levels(form, tokens, hidden, num_levels, int(placed.sum()), dtype, device)
    weight = make_rows(7, hidden, dtype)
    ids = torch.randint(0, 7, tokens)
    out = poisoned(*tokens, hidden, dtype=dtype, device=device)
    levels = poisoned(num_levels, num_tokens, hidden, dtype=dtype)
    if is_embed:
        expected, levels = expected_scatter(weight[ids], items, spans, torch.zeros_like(levels), scale)
    else:
        expected, levels = expected_scatter(out.cpu(), items, spans, levels, scale)
    items = [rows.to(device) for rows in items]
    if is_embed:
        embed_tokens(ids.to(device), weight.to(device), items, spans, out=out, scale=scale, **argument)
    else:
        assert scatter_embeddings(out, items, spans, scale=scale, **argument) is out
    assert same_bits(out.cpu(), expected)
    wanted_levels = expected_levels(form, levels, placed)
    for got, wanted in zip(written_levels(form, argument, hidden), wanted_levels, strict=True):
        assert same_bits(got.cpu().contiguous(), wanted.contiguous())
