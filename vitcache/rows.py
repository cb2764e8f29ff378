"""Tensors of rows: the supported dtypes, their numbers in native code, and checks of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of the native `Kind`
KINDS = {dtype: kind for kind, dtype in enumerate(DTYPES)}
DTYPE_NAMES = ", ".join(map(str, DTYPES))


def can_be_stored(rows: Tensor) -> bool:
    """Whether `rows` is a dense tensor of one of `DTYPES` on the CPU or a CUDA device."""
    return rows.dtype in DTYPES and rows.layout == torch.strided and rows.device.type in ("cpu", "cuda")


def check_rows(rows: Any, row_width: int, packed: bool = False) -> Tensor:
    """Return `rows`, detached from autograd. With `packed`, their width may also be a divisor of `row_width`.

    Raises
    ------
    TypeError
        If `rows` is not a dense tensor of one of `DTYPES` on the CPU or a CUDA device.
    ValueError
        If the shape of `rows` is not ``(num_rows, row_width)``; or with `packed`, if their width does not
        divide `row_width`.
    """
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows must be a tensor, got {type(rows).__name__}")
    if not can_be_stored(rows):
        raise TypeError(
            f"rows is a {rows.layout} tensor of {rows.dtype} on {rows.device}, it must be a dense tensor of "
            f"{DTYPE_NAMES} on the CPU or CUDA"
        )
    if rows.dim() != 2 or not (rows.shape[1] == row_width or (packed and _divides(rows.shape[1], row_width))):
        narrower = f" or of a width that divides {row_width}" if packed else ""
        raise ValueError(f"rows has shape {tuple(rows.shape)}, it must be (num_rows, {row_width}){narrower}")
    return rows.detach()


def _divides(width: int, row_width: int) -> bool:
    return width > 0 and row_width % width == 0


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is a dense tensor of one of `DTYPES`."""
    if tensor.dtype not in KINDS:
        raise TypeError(f"{name} is {tensor.dtype}, it must be float32, float16 or bfloat16")
    check_layout(name, tensor)


def check_layout(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is dense."""
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} is a {tensor.layout} tensor, it must be dense")
