"""Checks of numbers and devices. Each error names the argument, and states the value and the limit."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, SupportsIndex

import torch

from vitcache.errors import CudaError


def to_int(name: str, value: SupportsIndex, minimum: int) -> int:
    """Return `value` as an int.

    Raises
    ------
    TypeError
        If `value` is not an integer of Python or NumPy, or if it is a bool.
    ValueError
        If `value` is less than `minimum`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if number < minimum:
        raise ValueError(f"{name} is {number}, it must be at least {minimum}")
    return number


def to_ms(name: str, value: Any) -> float:
    """Return a time in milliseconds as a float.

    Raises
    ------
    TypeError
        If `value` is not a real number, or if it is a bool.
    ValueError
        If `value` is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} is {value}, it must be finite and at least 0")
    return float(value)


def to_device(device: torch.device | str | None) -> torch.device:
    """Return `device` as a `torch.device`: the CPU, or a CUDA device with an index.

    Parameters
    ----------
    device
        None: the current CUDA device if torch finds one, else the CPU. ``"cuda"``: the current CUDA device.

    Raises
    ------
    ValueError
        If `device` is neither the CPU nor a CUDA device, or torch does not know its name.
    CudaError
        If `device` is a CUDA device and torch finds no CUDA device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}, it must be the CPU or a CUDA device") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device}, it must be the CPU or a CUDA device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CudaError(f"device is {device}, but torch finds no CUDA device")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
