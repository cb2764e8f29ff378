"""The arguments of a copy: sources as the native module reads them, and checks of destinations."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitcache.rows import check_extent, plain_tensor


class StridedView(NamedTuple):
    """The memory of a CPU tensor or NumPy array. Strides are in bytes; `owner` keeps the memory alive.

    `tensor` is a plain tensor of the same memory, or None for an array. Its storage may have been resized.
    """

    address: int
    dtype: torch.dtype
    element_bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    owner: Any
    tensor: Tensor | None = None


def as_strided_view(src: Any) -> StridedView:
    """Describe the memory of `src`, the source of a copy.

    Raises
    ------
    TypeError
        If `src` is neither a tensor nor a NumPy array, if torch does not have its dtype, or if `src` is a
        tensor without memory of its own.
    ValueError
        If `src` is a tensor that is not on the CPU, is not dense, requires gradients in grad mode, or has
        elements outside of its storage.
    """
    if isinstance(src, Tensor):
        refuse_gradients("src", src)
        src = _as_dense("src", src)
        if src.device.type != "cpu":
            raise ValueError(
                f"src is a {src.layout} tensor on {src.device}, it must be a dense tensor on the CPU"
            )
        check_extent("src", src)  # `resolve_conj` and `resolve_neg` may read it
        src = src.resolve_conj().resolve_neg()
        size = src.element_size()
        strides = tuple(stride * size for stride in src.stride())
        return StridedView(src.data_ptr(), src.dtype, size, tuple(src.shape), strides, src, src)
    if not isinstance(src, np.ndarray):
        raise TypeError(f"src must be a CPU tensor or a NumPy array, got {type(src).__name__}")
    owner = src
    src = np.asarray(src).view()  # a subclass may override shape and strides, and `src` may change its own
    dtype = getattr(torch, src.dtype.name, None)
    if not isinstance(dtype, torch.dtype) or not src.dtype.isnative:
        raise TypeError(f"src is an array of dtype {src.dtype.str}, which torch does not have")
    address: int = src.__array_interface__["data"][0]
    return StridedView(address, dtype, src.itemsize, src.shape, src.strides, (owner, src, _export(src)))


def check_destination(dst: Any, device: torch.device) -> Tensor:
    """Return a plain tensor of the memory of `dst`, a dense, contiguous tensor on `device`.

    Raises
    ------
    TypeError
        If `dst` is not a tensor, or has no memory of its own.
    ValueError
        If `dst` is on another device, is not contiguous, has elements outside of its storage, is conjugated,
        negated or quantized, or requires gradients in grad mode.
    """
    if not isinstance(dst, Tensor):
        raise TypeError(f"dst must be a tensor, got {type(dst).__name__}")
    refuse_gradients("dst", dst)
    plain = _as_dense("dst", dst)
    if plain.device != device:
        raise ValueError(f"dst is on {plain.device}, the ring copies to {device}")
    if not plain.is_contiguous():
        raise ValueError(
            f"dst has strides {plain.stride()} for shape {tuple(plain.shape)}, it must be contiguous"
        )
    if plain.is_conj() or plain.is_neg() or plain.is_quantized:
        raise ValueError("dst is a conjugated, negated or quantized tensor: its bytes are not its values")
    check_extent("dst", plain)
    return plain


def _as_dense(name: str, tensor: Tensor) -> Tensor:
    """Return a new plain tensor of the memory of `tensor`: later changes of its shape do not change this one.

    Raises
    ------
    TypeError
        As `plain_tensor`.
    ValueError
        If `tensor` is not dense.
    """
    plain = plain_tensor(name, tensor)
    if plain.layout != torch.strided or plain.is_nested:
        kind = "nested" if plain.is_nested else plain.layout
        raise ValueError(f"{name} is a {kind} tensor on {plain.device}, it must be a dense tensor")
    return plain.detach()


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
