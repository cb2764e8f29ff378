"""The arguments of a copy: sources as the native module reads them, and checks of destinations."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class StridedView(NamedTuple):
    """The memory of a CPU tensor or NumPy array. Strides are in bytes; `owner` keeps the memory alive."""

    address: int
    dtype: torch.dtype
    element_bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    owner: Any


def as_strided_view(src: Any) -> StridedView:
    """Describe the memory of `src`, the source of a copy.

    Raises
    ------
    TypeError
        If `src` is neither a tensor nor a NumPy array, or if torch does not have its dtype.
    ValueError
        If `src` is a tensor that is not on the CPU, is not dense, or requires gradients in grad mode.
    """
    if isinstance(src, Tensor):
        if src.device.type != "cpu" or src.layout != torch.strided:
            raise ValueError(
                f"src is a {src.layout} tensor on {src.device}, it must be a dense tensor on the CPU"
            )
        refuse_gradients("src", src)
        src = src.detach().resolve_conj().resolve_neg()
        size = src.element_size()
        strides = tuple(stride * size for stride in src.stride())
        return StridedView(src.data_ptr(), src.dtype, size, tuple(src.shape), strides, src)
    if not isinstance(src, np.ndarray):
        raise TypeError(f"src must be a CPU tensor or a NumPy array, got {type(src).__name__}")
    dtype = getattr(torch, src.dtype.name, None)
    if not isinstance(dtype, torch.dtype) or not src.dtype.isnative:
        raise TypeError(f"src is an array of dtype {src.dtype.str}, which torch does not have")
    return StridedView(src.ctypes.data, dtype, src.itemsize, src.shape, src.strides, (src, _export(src)))


def check_destination(dst: Any, device: torch.device) -> None:
    """Raise TypeError or ValueError unless `dst` is a dense, contiguous tensor on `device`.

    A tensor that is conjugated, negated, quantized, or requires gradients in grad mode is refused, too.
    """
    if not isinstance(dst, Tensor):
        raise TypeError(f"dst must be a tensor, got {type(dst).__name__}")
    if dst.device != device:
        raise ValueError(f"dst is on {dst.device}, the ring copies to {device}")
    if dst.layout != torch.strided:
        raise ValueError(f"dst is a {dst.layout} tensor, it must be a dense tensor")
    if not dst.is_contiguous():
        raise ValueError(
            f"dst has strides {dst.stride()} for shape {tuple(dst.shape)}, it must be contiguous"
        )
    if dst.is_conj() or dst.is_neg() or dst.is_quantized:
        raise ValueError("dst is a conjugated, negated or quantized tensor: its bytes are not its values")
    refuse_gradients("dst", dst)


def refuse_gradients(name: str, tensor: Tensor) -> None:
    """Raise ValueError if autograd would need the gradient of a copy through the ring."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires gradients, which a copy through the ring would lose: detach it")


def _export(array: np.ndarray) -> memoryview | None:
    """Return an export of the buffer that contains the array, or None without a buffer. NumPy keeps none.

    While the export exists, the owner of the buffer, for example shared memory, cannot be closed.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    with suppress(TypeError):  # `base` does not support the buffer protocol
        return memoryview(base)
    return None
