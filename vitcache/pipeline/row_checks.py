"""Checks of an item's rows, from the encoder or precomputed, before a placement reads their memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitcache.placement.call_checks import is_traced
from vitcache.rows import DTYPE_NAMES, can_be_stored, check_extent


def as_plain_tensor(rows: Any, expected: str) -> Tensor:
    """Return a tensor without its subclass and without gradients; it shares the memory of `rows`.

    A subclass of `torch.Tensor` can override every method that a step calls on rows.

    Parameters
    ----------
    expected
        The beginning of the message of an error, such as "rows must be a tensor".

    Raises
    ------
    TypeError
        If `rows` is not a tensor, or is of a subclass without memory of its own, such as a `FakeTensor`.
    """
    if not isinstance(rows, Tensor):
        raise TypeError(f"{expected}, got {type(rows).__name__}")
    if type(rows) is Tensor:
        return rows.detach()
    if is_traced(rows):
        raise TypeError(f"{expected} whose memory can be read, got {type(rows).__name__}")
    with torch._C.DisableTorchFunctionSubclass():
        return Tensor.as_subclass(Tensor.detach(rows), Tensor)


def check_storable(rows: Tensor, expected: str) -> None:
    """Raise TypeError unless a plain tensor is dense and of a supported dtype, on the CPU or CUDA."""
    if not can_be_stored(rows):
        kind = "nested" if rows.is_nested else rows.layout
        given = f"a {kind} tensor of {rows.dtype} on {rows.device}"
        raise TypeError(f"{expected} a dense tensor of {DTYPE_NAMES} on the CPU or CUDA, got {given}")


def check_encoded_rows(rows: Any, width: int, device: torch.device) -> Tensor:
    """Return the rows that the encoder returned for one item as a plain tensor ``(n, width)``.

    Raises
    ------
    TypeError
        If `rows` is not a dense tensor of a supported dtype.
    ValueError
        If `rows` is on another device, is not of shape ``(n, width)``, or has elements outside of its
        storage.
    """
    plain = as_plain_tensor(rows, "encode must return a tensor per item")
    if plain.device != device:
        raise ValueError(f"encode must return rows on {device}, got rows on {plain.device}")
    check_storable(plain, "encode must return")
    if plain.dim() != 2 or plain.shape[1] != width:
        raise ValueError(f"encode must return shape (num_rows, {width}), got {tuple(plain.shape)}")
    check_extent("a result of encode", plain)
    return plain


def check_precomputed_rows(rows: Any, num_rows: int, width: int) -> Tensor:
    """Return the precomputed rows of an item as a plain tensor ``(num_rows, width)``, on any device.

    Raises
    ------
    TypeError, ValueError
        As `check_encoded_rows`.
    """
    plain = as_plain_tensor(rows, "rows must be a tensor")
    check_storable(plain, "rows must be")
    if plain.dim() != 2 or len(plain) != num_rows:  # an in-place `resize_` after the item was made
        raise ValueError(f"rows must have shape ({num_rows}, {width}), got {tuple(plain.shape)}")
    if plain.shape[1] != width:
        raise ValueError(f"rows must have the cache's row_width, which is {width}, got {plain.shape[1]}")
    check_extent("rows", plain)
    return plain
