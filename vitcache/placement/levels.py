"""The deepstack levels of a call: every form that a caller may pass, checked and viewed as levels.

Dynamo traces this module, so it reads only types, shapes, dtypes and devices. `Destination` checks the
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitcache.rows import check_layout

# All levels as one tensor, or None; and the levels of a list.
Levels = tuple[Tensor | None, Sequence[Tensor]]


def read_levels(name: str, inputs_embeds: Tensor, deepstack: Any, deepstack_rows: Any) -> Levels:
    """Return all levels as one tensor ``(L, ..., H)`` and no list, or None and the tensors of a list.

    `name` is the argument's name of `inputs_embeds`. Without levels the result is None and an empty list.

    Raises
    ------
    ValueError
        If both arguments are given, or a tensor is on another device than `inputs_embeds` or has a wrong
        shape.
    TypeError
        If a level is not a dense tensor of the dtype of `inputs_embeds`.
    """
    if deepstack_rows is not None:
        if deepstack is not None:
            raise ValueError("deepstack and deepstack_rows exclude each other: pass one of them")
        _check_tensor("deepstack_rows", deepstack_rows, name, inputs_embeds)
        hidden = inputs_embeds.shape[-1]
        if deepstack_rows.dim() != 3 or deepstack_rows.shape[2] != hidden:
            raise ValueError(
                f"deepstack_rows has shape {tuple(deepstack_rows.shape)}, it must be (L, N, {hidden})"
            )
        return deepstack_rows, ()
    if isinstance(deepstack, (list, tuple)):
        for level, tensor in enumerate(deepstack):
            label = f"deepstack[{level}]"
            _check_tensor(label, tensor, name, inputs_embeds)
            if tuple(tensor.shape) not in _token_shapes(inputs_embeds):
                num_tokens, hidden = _token_shapes(inputs_embeds)[1]
                raise ValueError(
                    f"{label} has shape {tuple(tensor.shape)}, it must be ({num_tokens}, {hidden})"
                )
        return None, deepstack
    if deepstack is None:
        return None, ()
    if not isinstance(deepstack, Tensor):
        raise TypeError(f"deepstack must be a tensor or a list of tensors, got {type(deepstack).__name__}")
    _check_tensor("deepstack", deepstack, name, inputs_embeds)
    return _view_levels(inputs_embeds, deepstack), ()


def index_levels(
    name: str, inputs_embeds: Tensor, deepstack: Any, deepstack_rows: Any
) -> Tensor | Sequence[Tensor]:
    """`read_levels`, as one value whose element ``l`` is level ``l``."""
    levels, listed = read_levels(name, inputs_embeds, deepstack, deepstack_rows)
    return listed if levels is None else levels


def level_arguments(deepstack: Any, deepstack_rows: Any) -> list[Any]:
    """The caller's tensors that contain the levels, unchecked."""
    if isinstance(deepstack, (list, tuple)):
        return [*deepstack, deepstack_rows]
    return [deepstack, deepstack_rows]


def _view_levels(inputs_embeds: Tensor, deepstack: Tensor) -> Tensor:
    """View ``(L, T, H)``, ``(L, B, T, H)`` or columns as ``(L, ..., H)``, in this order of preference."""
    token_shapes = _token_shapes(inputs_embeds)
    num_tokens, hidden = token_shapes[1]
    shape = tuple(deepstack.shape)
    if shape[1:] in token_shapes:
        return deepstack
    is_columns = (*shape[:-1], hidden) in token_shapes
    if is_columns and hidden > 0 and shape[-1] % hidden == 0:
        levels: Tensor = deepstack.unflatten(-1, (shape[-1] // hidden, hidden)).movedim(-2, 0)
        return levels
    raise ValueError(
        f"deepstack has shape {shape}, it must be (L, {num_tokens}, {hidden}), ({num_tokens}, L * {hidden}), "
        f"or a list of L tensors ({num_tokens}, {hidden})"
    )


def _token_shapes(inputs_embeds: Tensor) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The shapes of a level: that of `inputs_embeds`, and ``(T, H)`` with all tokens."""
    *tokens, hidden = inputs_embeds.shape
    return (*tokens, hidden), (tokens[0] * tokens[1] if len(tokens) == 2 else tokens[0], hidden)


def _check_tensor(label: str, tensor: Any, name: str, inputs_embeds: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{label} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype != inputs_embeds.dtype:
        raise TypeError(f"{label} is {tensor.dtype}, {name} is {inputs_embeds.dtype}")
    if tensor.device != inputs_embeds.device:
        raise ValueError(f"{label} is on {tensor.device}, {name} is on {inputs_embeds.device}")
    check_layout(label, tensor)
