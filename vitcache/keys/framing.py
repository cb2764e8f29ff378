"""`Frames`: a tree of values as bytes, so that trees of different content have different bytes.

A node is a tag of one byte, the length of its payload (8 bytes, little-endian) and the payload. A list or a
dict is a tag, the number of its parts and the parts. The bytes of arrays are hashed apart. `content.py`
describes the form of each type.
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from vitcache.keys import digests
from vitcache.keys.arrays import HashedArray, flat_bytes, hashed_array, hashed_bytes
from vitcache.keys.digests import digest_of, digests_of

# All NaNs are one value. The sign and the payload of a NaN depend on the operation that made it, and on the
# processor; callers do not choose them.
_NAN = bytes.fromhex("000000000000f87f")

# Tuples: a union of types would be built anew by each check.
_ARRAYS = (Tensor, np.ndarray, np.generic)
_BUFFERS = (bytes, bytearray, memoryview)


class Frames:
    """Collects the nodes of a key's values, and the arrays whose bytes are hashed apart."""

    def __init__(self, *nodes: bytes) -> None:
        self.nodes = list(nodes)
        self.arrays: list[HashedArray] = []

    def add_feature(self, value: Any, path: str) -> None:
        """Add an array, a tensor, the bytes of a file, or a list or tuple of these.

        Raises
        ------
        TypeError
            If `value` or one of its parts is not one of these. The message contains its position, `path`.
        ValueError
            If the storage of a tensor has been freed or is too small. If a list contains itself, or is nested
            too deeply for Python's stack.
        """
        try:
            self._add_feature(value, path)
        except RecursionError:
            raise _too_deep(path) from None

    def _add_feature(self, value: Any, path: str) -> None:
        if isinstance(value, _ARRAYS):
            self._add_array(hashed_array(value, path))
        elif isinstance(value, _BUFFERS):
            self._add_array(hashed_bytes(value, path))
        elif isinstance(value, list | tuple):
            parts = tuple(value)  # another thread may change a list: the count is of the parts that follow
            self.nodes.append(count_node(b"l", len(parts)))
            for position, part in enumerate(parts):
                self._add_feature(part, f"{path}[{position}]")
        else:
            raise TypeError(
                f"{path} must be an array, a tensor, bytes or a list of these, got {_type_name(value)}"
            )

    def add_value(self, value: Any, path: str) -> None:
        """Add a value of `extra`. Raises as `add_feature`."""
        try:
            self._add_value(value, path)
        except RecursionError:
            raise _too_deep(path) from None

    def _add_value(self, value: Any, path: str) -> None:
        if value is None:
            self.nodes.append(node(b"n", b""))
        elif isinstance(value, bool):
            self.nodes.append(node(b"t", b"\1" if value else b"\0"))
        elif isinstance(value, int):
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.nodes.append(node(b"i", data))
        elif isinstance(value, str):
            self.nodes.append(text_node(value))
        elif isinstance(value, _ARRAYS):
            self._add_array(hashed_array(value, path))
        elif isinstance(value, float):
            self.nodes.append(node(b"f", _NAN if math.isnan(value) else struct.pack("<d", value)))
        elif isinstance(value, list | tuple):
            parts = tuple(value)
            self.nodes.append(count_node(b"l", len(parts)))
            for position, part in enumerate(parts):
                self._add_value(part, f"{path}[{position}]")
        elif isinstance(value, dict):
            self._add_dict(value, path)
        elif isinstance(value, _BUFFERS):
            self.nodes.append(node(b"b", bytes(flat_bytes(value, path))))
        else:
            raise TypeError(f"{path} is of type {_type_name(value)}, which cannot be hashed")

    def key(self, num_threads: int = 1) -> bytes:
        """Return the hash of all nodes, and of the hash of each array's bytes, 32 bytes."""
        contents = digests_of((array.blocks for array in self.arrays), num_threads) if self.arrays else []
        return digest_of(b"".join((*self.nodes, *contents)))

    def _add_array(self, array: HashedArray) -> None:
        self.nodes.append(array_nodes(array.dtype, array.shape))
        self.arrays.append(array)

    def _add_dict(self, value: dict[Any, Any], path: str) -> None:
        parts: dict[str, Any] = {}
        for name, part in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{path} has a key {name!r} of type {_type_name(name)}, keys must be str")
            text = str.__str__(name)
            if text in parts:  # keys of a subclass of str that compares in its own way
                raise TypeError(f"{path} has two keys of the text {text!r}")
            parts[text] = part
        self.nodes.append(count_node(b"d", len(parts)))
        for text in sorted(parts):
            self.nodes.append(text_node(text))
            self._add_value(parts[text], f"{path}[{text!r}]")


def _too_deep(path: str) -> ValueError:
    return ValueError(f"{path} contains itself, or is nested too deeply")


def version_node(form: str) -> bytes:
    """Return the first node of a key: its form, such as "content.2", and the name of the algorithm."""
    return _version_node(form, digests.ALGORITHM)


@lru_cache(maxsize=64)
def _version_node(form: str, algorithm: str) -> bytes:
    return node(b"v", f"vitcache.{form}.{algorithm}".encode())


def node(tag: bytes, payload: bytes) -> bytes:
    """Return a node: the tag, the length of the payload, and the payload."""
    return tag + len(payload).to_bytes(8, "little") + payload


def count_node(tag: bytes, count: int) -> bytes:
    """Return the beginning of a list, a dict or a shape of `count` parts, or of a node of `count` bytes."""
    return tag + count.to_bytes(8, "little")


@lru_cache(maxsize=1024)
def array_nodes(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the nodes of an array: the name of its dtype, and its shape."""
    sizes = struct.pack(f"<{len(shape)}q", *shape)
    return node(b"a", dtype.encode()) + count_node(b"x", len(shape)) + sizes


def text_node(text: str) -> bytes:
    """Return the node of a str."""
    return node(b"s", str.encode(text, "utf-8", "surrogatepass"))  # also of a subclass of str


def _type_name(value: Any) -> str:
    return type(value).__qualname__
