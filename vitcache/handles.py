"""Handles: objects that own a pin, memory or threads. They refuse copies, and their reprs never raise.

A copy of a handle would share the pin, the memory or the threads of the original: if one of the two is
released, the other one refers to freed memory. In another process, a pickle would refer to nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, SupportsIndex

_BYTE_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def refuse_copies(instead: str) -> Callable[[Any, SupportsIndex], NoReturn]:
    """Return the `__reduce_ex__` of a class whose objects can be neither copied nor pickled.

    `copy.copy`, `copy.deepcopy` and `pickle` call `__reduce_ex__`, so one method refuses all of them.

    Parameters
    ----------
    instead
        The alternative, for the message of the TypeError.
    """

    def __reduce_ex__(self: Any, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(f"objects of {type(self).__name__} cannot be copied or pickled: {instead}")

    return __reduce_ex__


def described(describe: Callable[[Any], str]) -> Callable[[Any], str]:
    """Make a `__repr__` that never raises from a function that describes an object in a few words.

    The repr is ``<Class words>``. An object whose `__init__` was interrupted lacks attributes.
    """

    @functools.wraps(describe)
    def __repr__(self: Any) -> str:
        try:
            words = describe(self)
        except AttributeError:
            words = "not initialized"
        except Exception as error:
            words = f"of unknown state: {type(error).__name__}"
        return f"<{type(self).__name__} {words}>"

    return __repr__


def describe_use(used_bytes: int, capacity_bytes: int) -> str:
    """Return a size and its limit in the limit's unit, such as ``3.1 of 4.0 GiB``."""
    for unit, size in _BYTE_UNITS:
        if capacity_bytes >= size:
            used, capacity = used_bytes / size, capacity_bytes / size
            return f"{_short(used)} of {_short(capacity)} {unit}"
    return f"{used_bytes} of {capacity_bytes} bytes"


def describe_count(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 row``, ``2 rows``, ``2 entries``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"


def _short(number: float) -> str:
    """Return a number with one digit behind the point if it is small, else as a whole number."""
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"
