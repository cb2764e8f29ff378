"""Arrays of tokens that a caller passes as a list, an array or a tensor, with one value per token.

An object of another type is refused. NumPy would read the memory that its `__array_interface__` names, or
call its `__array__`: nothing checks that memory.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from vitcache.arguments import to_int
from vitcache.rows import check_extent, check_layout

_BUFFERS = (array.array, memoryview)


def to_array(name: str, values: Any) -> np.ndarray:
    """Return a list, array or tensor as an array in host memory.

    A list of bools is an array of bools, another list an array of int64. A list of lists, all of one length,
    is an array of two dimensions.

    Raises
    ------
    TypeError
        If `values` is of another type, or a list with an element that is not an integer.
    ValueError
        If the elements of a tensor are outside of its storage, a number has more than 64 bits, or the lists
        in a list have different lengths.
    """
    if isinstance(values, Tensor):
        check_layout(name, values)
        check_extent(name, values)
        found: np.ndarray = values.numpy(force=True)
        return found
    if isinstance(values, np.ndarray):
        return np.asarray(values)
    if isinstance(values, _BUFFERS):
        return np.asarray(memoryview(values))
    if not isinstance(values, list | tuple | range):
        raise TypeError(f"{name} must be a list, an array or a tensor, got {type(values).__name__}")
    rows = list(values)
    if not rows or not isinstance(rows[0], list | tuple):
        return _to_vector(name, rows)
    if not all(isinstance(row, list | tuple) for row in rows):
        raise TypeError(f"{name} must be a list of ints, or a list of lists of ints")
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"{name} is a list of lists of different lengths")
    return _to_vector(name, list(chain.from_iterable(rows))).reshape(len(rows), -1)


def _to_vector(name: str, values: Sequence[Any]) -> np.ndarray:
    kinds = set(map(type, values))
    if kinds and kinds <= {bool, np.bool_}:
        return np.array(values, dtype=bool)
    numbers = values if kinds <= {int} else [to_int(f"an element of {name}", value) for value in values]
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError:
        raise ValueError(f"{name} has an element of more than 64 bits") from None
