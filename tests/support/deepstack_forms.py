"""Every form in which a caller may pass deepstack levels, filled with NaN, and what each form contains."""

from __future__ import annotations

from typing import Any

import torch
from placement_cases import poisoned
from torch import Tensor

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
