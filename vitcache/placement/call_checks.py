"""Checks of a call's arguments other than rows and spans. They run before anything is written."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from vitcache.arguments import shown
from vitcache.rows import KINDS, check_layout


def is_traced(tensor: Any) -> bool:
    """Whether torch traces the call, or the tensor has no memory that a kernel can read.

    This is true of meta tensors and of subclasses that define ``__torch_dispatch__``. The operators of
    `torch_ops` serve these calls.
    """
    if torch.compiler.is_compiling():
        return True
    if not isinstance(tensor, Tensor) or type(tensor) in (Tensor, torch.nn.Parameter):
        return isinstance(tensor, Tensor) and tensor.device.type == "meta"
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def check_scale(name: str, value: Any) -> float | None:
    """Return a scale as a float, or None for None.

    Raises
    ------
    TypeError
        If it is not a real number.
    ValueError
        If it is beyond the numbers that a float has.
    """
    if value is None or isinstance(value, float):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number or None, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is {shown(value)}, which is beyond the range of a float") from None


def check_writable(*written: Tensor | None) -> None:
    """Raise RuntimeError if autograd forbids an in-place write to one of the tensors.

    torch raises its own error only after the write.
    """
    kinds = torch._C._autograd.CreationMeta
    for tensor in written:
        if tensor is None:
            continue
        if tensor.is_inference():
            raise RuntimeError("an inference tensor cannot be written where gradients are recorded")
        base = tensor if tensor._base is None else tensor._base
        if tensor.requires_grad and base.is_leaf:
            raise RuntimeError("a leaf that requires grad, or a view of one, cannot be written in place")
        kind = torch._C._autograd._get_creation_meta(tensor) if tensor._is_view() else kinds.DEFAULT
        if kind != kinds.DEFAULT:
            raise RuntimeError(f"a view of kind {kind.name} cannot be written where gradients are recorded")


def refuse_out(has_out: bool) -> None:
    """Raise ValueError if the caller of a differentiable `embed_tokens` passed ``out=``."""
    if has_out:
        raise ValueError("embed_tokens with out= records no gradients: omit out=, or use torch.no_grad()")


def refuse_store(store: Any, call_kind: str) -> None:
    """Raise ValueError if ``store=`` is given to a kind of call that cannot store rows."""
    if store is not None:
        raise ValueError(f"store= cannot be combined with {call_kind}")


def check_table_call(spans: Any, deepstack_rows: Any, *written: Tensor | None) -> None:
    """Raise ValueError if a call with a `PlacementTable` passes spans or packed levels, or needs grad."""
    if spans is not None:
        raise ValueError("a PlacementTable contains its spans: pass None for spans")
    if deepstack_rows is not None:
        raise ValueError(
            "deepstack_rows cannot be combined with a PlacementTable, because an update changes the number "
            "of image tokens: pass deepstack"
        )
    if needs_grad(*written):
        raise ValueError("a PlacementTable records no gradients: use torch.no_grad()")


def check_embedding(input_ids: Tensor, weight: Tensor) -> None:
    """Raise TypeError or ValueError unless `input_ids` and `weight` have valid types, shapes and devices."""
    for name, value in (("input_ids", input_ids), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        check_layout(name, value)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids are {input_ids.dtype}, they must be int64 or int32")
    if input_ids.dim() not in (1, 2):
        raise ValueError(f"input_ids have {input_ids.dim()} dimensions, they must be (T,) or (B, T)")
    if weight.dtype not in KINDS:
        raise TypeError(f"weight is {weight.dtype}, it must be float32, float16 or bfloat16")
    if weight.dim() != 2:
        raise ValueError(f"weight has {weight.dim()} dimensions, it must be (V, H)")
    if weight.stride(1) != 1 and weight.shape[1] > 1:
        raise ValueError(f"weight has stride {weight.stride(1)} between elements of a row, it must be 1")
    if input_ids.device != weight.device:
        raise ValueError(f"input_ids are on {input_ids.device}, weight is on {weight.device}")


def make_out(input_ids: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """Return `out` after a check of its shape and device; for None, allocate it in the weight's dtype."""
    shape = input_ids.shape + weight.shape[1:]  # faster than a tuple of their elements
    if out is None:
        return weight.new_empty(shape)
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, it must be {tuple(shape)}")
    if out.device != weight.device:
        raise ValueError(f"out is on {out.device}, weight is on {weight.device}")
    return out


def needs_grad(*values: Any) -> bool:
    """Whether autograd records a gradient for any tensor among the values."""
    return torch.is_grad_enabled() and any(
        isinstance(value, Tensor) and value.requires_grad for value in values
    )


def bump_versions(*written: Tensor | None) -> None:
    """Increment the version counters of tensors that a kernel wrote without autograd's knowledge.

    Then `backward` raises if it needs the overwritten values.
    """
    for tensor in written:
        if tensor is not None and not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
