"""Checks of an item's rows, from the encoder or precomputed, before a placement reads their memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitcache.rows import DTYPE_NAMES, can_be_stored, check_extent, plain_tensor


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
        If `rows` is not a dense tensor of a supported dtype, or has no memory of its own.
    ValueError
        If `rows` is on another device, is not of shape ``(n, width)``, or has elements outside of its
        storage.
    """
    if not isinstance(rows, Tensor):
        raise TypeError(f"encode must return a tensor per item, got {type(rows).__name__}")
    plain = plain_tensor("a result of encode", rows).detach()
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
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows must be a tensor, got {type(rows).__name__}")
    plain = plain_tensor("rows", rows).detach()
    check_storable(plain, "rows must be")
    if plain.dim() != 2 or len(plain) != num_rows:  # an in-place `resize_` after the item was made
        raise ValueError(f"rows must have shape ({num_rows}, {width}), got {tuple(plain.shape)}")
    if plain.shape[1] != width:
        raise ValueError(f"rows must have the cache's row_width, which is {width}, got {plain.shape[1]}")
    check_extent("rows", plain)
    return plain
