"""What callers may pass: numbers and devices, with an error that names the argument."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, SupportsIndex

import torch

from vitcache.errors import CudaError


def to_int(name: str, value: SupportsIndex, least: int) -> int:
    """Return `value` as an int, also NumPy's; TypeError or ValueError if it is none or too small."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an int, it is {value!r} of type {type(value).__name__}")
    if number < least:
        raise ValueError(f"{name} is {number}, it must be at least {least}")
    return number


def to_ms(name: str, value: Any) -> float:
    """Return `value` as a float; TypeError or ValueError unless it is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, it is {value!r} of type {type(value).__name__}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} is {value}, it must be finite and at least 0")
    return float(value)


def to_device(device: torch.device | str | None) -> torch.device:
    """Return the CPU, or a CUDA device by its number.

    Parameters
    ----------
    device
        None: the current CUDA device if there is one, else the CPU.

    Raises
    ------
    ValueError
        If it is another device, or unknown.
    CudaError
        If it is a CUDA device and torch finds none.
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
