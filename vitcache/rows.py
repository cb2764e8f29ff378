"""Tensors of rows: the supported dtypes, their numbers in native code, and checks of tensors."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of the native `Kind`
KINDS = {dtype: kind for kind, dtype in enumerate(DTYPES)}
DTYPE_NAMES = ", ".join(map(str, DTYPES))

try:
    from vitcache._native import TensorReader
except ImportError:  # content keys work without the native module
    _reader = None
else:
    _reader = TensorReader(Tensor, Parameter)


def can_be_stored(rows: Tensor) -> bool:
    """Whether `rows` is a dense tensor of one of `DTYPES` on the CPU or a CUDA device."""
    is_dense = rows.layout == torch.strided and not rows.is_nested
    return is_dense and rows.dtype in DTYPES and rows.device.type in ("cpu", "cuda")


def check_rows(rows: Any, row_width: int, packed: bool = False) -> Tensor:
    """Return `rows`, detached from autograd. With `packed`, their width may also be a divisor of `row_width`.

    Raises
    ------
    TypeError
        If `rows` is not a dense tensor of one of `DTYPES` on the CPU or a CUDA device, or has no memory of
        its own.
    ValueError
        If the shape of `rows` is not ``(num_rows, row_width)``; or with `packed`, if their width does not
        divide `row_width`. If elements of `rows` are outside of its storage.
    """
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows must be a tensor, got {type(rows).__name__}")
    plain = plain_tensor("rows", rows)
    if not can_be_stored(plain):
        kind = "nested" if plain.is_nested else plain.layout
        raise TypeError(
            f"rows is a {kind} tensor of {plain.dtype} on {plain.device}, it must be a dense tensor of "
            f"{DTYPE_NAMES} on the CPU or CUDA"
        )
    if plain.dim() != 2 or not (
        plain.shape[1] == row_width or (packed and _divides(plain.shape[1], row_width))
    ):
        narrower = f" or of a width that divides {row_width}" if packed else ""
        raise ValueError(f"rows has shape {tuple(plain.shape)}, it must be (num_rows, {row_width}){narrower}")
    check_extent("rows", plain)
    return plain.detach()


def _divides(width: int, row_width: int) -> bool:
    return width > 0 and row_width % width == 0


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is a dense tensor of one of `DTYPES`."""
    if tensor.dtype not in KINDS:
        raise TypeError(f"{name} is {tensor.dtype}, it must be float32, float16 or bfloat16")
    check_layout(name, tensor)


def check_layout(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless `tensor` is dense."""
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(f"{name} is a {kind} tensor, it must be dense")


def plain_tensor(name: str, tensor: Tensor) -> Tensor:
    """Return a `torch.Tensor` with the memory and the gradient of `tensor`, whose class may override both.

    Raises
    ------
    TypeError
        If the class has a dispatch function, and its alias is not a plain tensor: its elements may be
        elsewhere, or nowhere.
    """
    kind = type(tensor)
    if kind is Tensor or kind is Parameter:
        return tensor
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        # The lazy features of an attached model get their memory here.
        alias: Any = None
        with suppress(NotImplementedError):
            alias = torch.ops.aten.alias.default(tensor)
        if type(alias) is Tensor:
            return alias
        raise TypeError(f"{name} is a {kind.__qualname__}, a tensor without memory of its own")
    with torch._C.DisableTorchFunctionSubclass():
        plain: Tensor = Tensor.as_subclass(tensor, Tensor)
    return plain


def check_extent(name: str, tensor: Tensor) -> None:
    """Check that all elements of a dense tensor are inside of its storage, and that the storage has memory.

    The storage may have been resized after the tensor was made, as FSDP does. torch itself does not check it:
    a copy of such a tensor reads the memory of something else, or ends the process.

    Raises
    ------
    ValueError
        If elements are outside of the storage. The message gives the needed and the found bytes.
    TypeError
        If the tensor has no memory of its own: a fake or functional tensor, or a subclass with a dispatch
        function, which may keep its elements elsewhere.
    """
    if _reader is not None and _reader.is_inside_storage(tensor):  # a quarter of the time of the lines below
        return
    tensor = plain_tensor(name, tensor)
    count = tensor.numel()
    if count and not tensor.is_contiguous():
        count = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    if count == 0:
        return
    needed = (tensor.storage_offset() + count) * tensor.itemsize
    try:
        found = tensor.untyped_storage().nbytes()
    except NotImplementedError:  # a tensor inside of torch.func.vmap or grad
        raise TypeError(f"{name} is a tensor without memory of its own, inside of a transform") from None
    if needed > found:
        raise ValueError(
            f"{name} is a tensor whose elements need {needed} bytes of its storage, which has {found} bytes"
        )
    if tensor.data_ptr() == 0:
        raise TypeError(f"{name} is a tensor without memory of its own, such as a functional tensor")
