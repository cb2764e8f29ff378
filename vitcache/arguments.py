"""Checks of numbers, sizes and devices. Each error names the argument, and states the value and the limit."""

from __future__ import annotations

import math
import operator
import re
import sys
from fractions import Fraction
from numbers import Real
from threading import TIMEOUT_MAX
from typing import Any, SupportsIndex

import torch

from vitcache.errors import CudaError

# Bytes of each unit of `to_bytes`: powers of 1000 as in SI, powers of 1024 as in IEC 80000-13.
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
INT64_MAX = (1 << 63) - 1
_MAX_BITS, _MAX_SHOWN = 300, 100  # of a value in a message
# At most 20 digits: more than any size in bytes, and int() of a longer text can be refused or slow.
_SIZE = re.compile(rf"([0-9]{{1,20}}(?:\.[0-9]{{1,20}})?) ?({'|'.join(UNITS)})")


def to_int(name: str, value: SupportsIndex, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return `value` as an int.

    Callers that pass the number to native code give `INT64_MAX` as the maximum.

    Raises
    ------
    TypeError
        If `value` is not an integer of Python, NumPy or torch, or if it is a bool.
    ValueError
        If `value` is less than `minimum` or more than `maximum`. None: no limit on this side.
    """
    number = value if type(value) is int else _index(value)
    if number is None:
        raise TypeError(f"{name} must be an int, got {shown(value)} of type {type(value).__name__}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} is {shown(number)}, it must be at least {minimum}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} is {shown(number)}, it must be at most {maximum}")
    return number


def shown(value: Any) -> str:
    """Return the repr of an argument for a message, shortened if it is long. Never raises.

    Python refuses the repr of an int of more than 4,300 digits, and a class of the caller can raise there.
    """
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"{'-' if value < 0 else ''}2**{value.bit_length() - 1} or more"
    try:
        text = repr(value)
    except Exception:
        return f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError if `value` is not a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {shown(value)} of type {type(value).__name__}")


def to_bytes(name: str, value: SupportsIndex | str, minimum: int) -> int:
    """Return a size in bytes as an int.

    Parameters
    ----------
    name
        Name of the argument, for messages.
    value
        An int, or a str such as ``"8GiB"``, ``"512 MiB"`` or ``"1.5 GB"``: a decimal number, at most one
        space, and a unit. B is a byte; KB, MB, GB and TB are powers of 1000; KiB, MiB, GiB and TiB are
        powers of 1024. The case of a unit matters.
    minimum
        The smallest size that is accepted.

    Raises
    ------
    TypeError
        If `value` is neither an integer nor a str, or if it is a bool.
    ValueError
        If a str has another form, or is not a whole number of bytes; if the size is less than `minimum`.
    """
    if not isinstance(value, str):
        number = value if type(value) is int else _index(value)
        if number is None:
            raise TypeError(
                f"{name} must be an int or a str such as '8GiB', got {shown(value)} of type "
                f"{type(value).__name__}"
            )
        return to_int(name, number, minimum)
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError(
            f"{name} is {value[:50]!r}, it must be a number and a unit such as '8GiB'; units: "
            f"{', '.join(UNITS)}"
        )
    size = Fraction(match[1]) * UNITS[match[2]]
    if size.denominator != 1:
        raise ValueError(
            f"{name} is {value!r}, which is {float(size)} bytes: it must be a whole number of bytes"
        )
    if size < minimum:
        raise ValueError(f"{name} is {value!r}, which is {size} bytes: it must be at least {minimum}")
    return size.numerator


def _index(value: Any) -> int | None:
    """Return an integer of Python, NumPy or torch as an int; None if it is a bool or not an integer."""
    # A bool tensor of torch has an index, too.
    if isinstance(value, bool) or getattr(value, "dtype", None) in (bool, torch.bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def to_ms(name: str, value: Any) -> float:
    """Return a time in milliseconds as a float.

    Raises
    ------
    TypeError
        If `value` is not a real number, or if it is a bool.
    ValueError
        If `value` is negative, infinite or NaN, or is more than a float can hold.
    """
    return _to_float(name, value, "a number", sys.float_info.max, "finite and at least 0")


def to_factor(name: str, value: Any) -> float:
    """Return a factor as a float.

    Raises
    ------
    TypeError
        If `value` is not a real number, or if it is a bool.
    ValueError
        If `value` is not above 0, or is infinite, NaN or more than a float can hold.
    """
    form = "finite and above 0"
    factor = _to_float(name, value, "a number", sys.float_info.max, form)
    if not factor:
        raise ValueError(f"{name} is {shown(factor)}, it must be {form}")
    return factor


def to_timeout(name: str, value: Any) -> float | None:
    """Return the limit of a wait in seconds as a float; None stands for no limit.

    Raises
    ------
    TypeError
        If `value` is neither None nor a real number, or if it is a bool.
    ValueError
        If `value` is negative, infinite or NaN, or is more than a wait of Python accepts, about 292 years.
    """
    if value is None:
        return None
    form = f"finite, at least 0 and at most {TIMEOUT_MAX:.0f}"
    return _to_float(name, value, "a number of seconds", TIMEOUT_MAX, form)


def _to_float(name: str, value: Any, kind: str, maximum: float, form: str) -> float:
    """Return a real number from 0 to `maximum` as a float; messages say `kind` and `form`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {kind}, got {shown(value)} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # of an int or a fraction
        number = math.inf
    if not 0 <= number <= maximum:
        text = shown(value if number in (math.inf, -math.inf) else number)
        raise ValueError(f"{name} is {text}, it must be {form}")
    return number


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
    TypeError
        If `device` is not a `torch.device`, a str or an int.
    CudaError
        If `device` is a CUDA device and torch finds no CUDA device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, ValueError) as error:  # ValueError: an index beyond 64 bits
        if type(error) not in (RuntimeError, ValueError):  # of a signal handler
            raise
        raise ValueError(f"device is {shown(device)}, it must be the CPU or a CUDA device") from None
    except TypeError:
        kind = type(device).__name__
        text = f"device must be a torch.device or a str, got {shown(device)} of type {kind}"
        raise TypeError(text) from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {device}, it must be the CPU or a CUDA device")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CudaError(f"device is {device}, but torch finds no CUDA device")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
