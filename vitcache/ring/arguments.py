"""Elements in ordinary memory as the native side takes them: an address, a shape, and strides."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class StridedView(NamedTuple):
    """A CPU tensor or NumPy array; `owner` keeps its memory. Strides are in bytes."""

    address: int
    dtype: torch.dtype
    element_bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    owner: Any


def as_strided_view(src: Any) -> StridedView:
    """Describe the source of a copy.

    Raises
    ------
    TypeError
        If it is neither a tensor nor an array, or of a dtype that torch has not.
    ValueError
        If it is a tensor on another device or of another layout, or requires gradients, which would be lost.
    """
    if isinstance(src, Tensor):
        if src.device.type != "cpu" or src.layout != torch.strided:
            raise ValueError(
                f"src is a {src.layout} tensor on {src.device}, it must be a dense one on the CPU"
            )
        refuse_gradients("src", src)
        src = src.detach().resolve_conj().resolve_neg()
        size = src.element_size()
        strides = tuple(stride * size for stride in src.stride())
        return StridedView(src.data_ptr(), src.dtype, size, tuple(src.shape), strides, src)
    if not isinstance(src, np.ndarray):
        raise TypeError(f"src must be a CPU tensor or a NumPy array, it is {type(src).__name__}")
    dtype = getattr(torch, src.dtype.name, None)
    if not isinstance(dtype, torch.dtype) or not src.dtype.isnative:
        raise TypeError(f"src is an array of {src.dtype.str}, torch has no such dtype")
    return StridedView(src.ctypes.data, dtype, src.itemsize, src.shape, src.strides, (src, _export(src)))


def check_destination(dst: Any, device: torch.device) -> None:
    """Raise TypeError or ValueError if `dst` is no plain, contiguous tensor on `device`."""
    if not isinstance(dst, Tensor):
        raise TypeError(f"dst must be a tensor, it is {type(dst).__name__}")
    if dst.device != device:
        raise ValueError(f"dst is on {dst.device}, the ring copies to {device}")
    if dst.layout != torch.strided:
        raise ValueError(f"dst is a {dst.layout} tensor, it must be a dense one")
    if not dst.is_contiguous():
        raise ValueError(
            f"dst has strides {dst.stride()} for shape {tuple(dst.shape)}, it must be contiguous"
        )
    if dst.is_conj() or dst.is_neg() or dst.is_quantized:
        raise ValueError("dst is a conjugated, negated or quantized tensor: its bytes are not its values")
    refuse_gradients("dst", dst)


def refuse_gradients(name: str, tensor: Tensor) -> None:
    """Raise ValueError if a copy that autograd does not see would lose a gradient."""
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires gradients, and a copy through the ring carries none: detach it")


def _export(array: np.ndarray) -> memoryview | None:
    """Hold the buffer that an array was made over: NumPy does not, and shared memory could be unmapped."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    with suppress(TypeError):  # none, or no buffer
        return memoryview(base)
    return None
