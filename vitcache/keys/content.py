"""Content keys: 32 bytes that name an item's content in a namespace.

What is hashed is a sequence of nodes. A node is a tag of one byte, the length of its payload (8 bytes,
little-endian) and the payload; a container is a tag, its number of children and the children. So no two
different inputs give the same bytes, and nothing depends on `pickle` or `repr`.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache.arguments import to_int
from vitcache.keys.readback import pieces, read_back

ALGORITHM: str
try:
    from blake3 import blake3

    ALGORITHM = "blake3"
except ImportError:
    ALGORITHM = "sha256"

KEY_BYTES = 32

# A strided array is hashed in blocks of at most this size, so that it is never copied whole.
_BLOCK_BYTES = 1 << 20
# BLAKE3 starts its threads anew for each key: below this, that takes as long as the hashing.
_THREADED_BYTES = 1 << 20

_ARRAY_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
}
# Dtypes that NumPy lacks are hashed by their bits, under their own name.
_BITS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


def content_key(feature: Any, *, namespace: bytes = b"", extra: Any = None, num_threads: int = 1) -> bytes:
    """Return the key of an item: 32 bytes over the content of `feature`, `namespace` and `extra`.

    The same logical content gives the same key: a NumPy array (of either byte order), a CPU tensor and a
    CUDA tensor, contiguous or not, of equal shape, dtype and values. Values are compared by their bits: 0.0
    and -0.0 differ, and a NaN equals itself. A list and a tuple are one.

    Parameters
    ----------
    feature
        An array or tensor of any bool, integer, float or complex dtype; or the bytes of an encoded file
        (`bytes`, `bytearray`, flat `memoryview`); or a list or tuple of these, nested or not.
    namespace
        What the encoder's output depends on besides the item, usually `Namespace.digest()`.
    extra
        What else selects the output, such as the encoder's keyword arguments: None, bool, int, float, str,
        bytes, arrays and tensors, and lists, tuples and dicts (with `str` keys, in any order) of these.
        1, 1.0 and True differ; all NaNs that are a plain float are one.
    num_threads
        Threads for this key. They serve BLAKE3 on a feature of 1 MiB or more; the key does not depend on
        them. `KeyThreads` computes many keys at once, off the calling thread.

    Raises
    ------
    TypeError
        If `feature` or a part of `extra` is of another type or dtype; the message says where it is.
    ValueError
        If `num_threads` is less than 1.

    Notes
    -----
    BLAKE3, or SHA-256 where the package `blake3` is missing; the algorithm's name is part of the key. Any
    thread may call, and calls run in parallel: the GIL is dropped while hashing.

    What is not contiguous is hashed block by block, never copied whole. So is a CUDA tensor: its blocks come
    through page-locked memory, each while the one before it is hashed, after the work that the current
    stream of its device has so far, for which the host waits. A key of the caller's own costs none of that.
    """
    if not isinstance(namespace, bytes):
        raise TypeError(f"namespace must be bytes, such as Namespace(...).digest(), it is {_name(namespace)}")
    if callable(feature):
        raise TypeError(
            "feature is a callable: load it and pass the result, or give the item a key of its own"
        )
    num_threads = to_int("num_threads", num_threads, 1)
    hasher = _start("content", num_threads if _num_bytes(feature) >= _THREADED_BYTES else 1)
    _add_node(hasher, b"b", namespace)
    _add_feature(hasher, feature, "feature")
    _add_extra(hasher, extra, "extra")
    return bytes(hasher.digest())


@dataclass(frozen=True)
class Namespace:
    """What an encoder's output depends on besides the item; entries of different namespaces never meet.

    Parameters
    ----------
    model, revision
        The vision tower and its weights.
    processor
        Fingerprint of the processor, needed where encoded files or pixels are hashed in place of features.
    adapter, dtype
        Adapter of the vision tower and dtype of the rows.
    tenant
        Whose items these are: tenants share entries only if they share this name.
    epoch
        A number to raise when weights change in place.

    Raises
    ------
    TypeError
        If a field is not of its type.
    ValueError
        If `epoch` is negative.
    """

    model: str
    revision: str = ""
    processor: str = ""
    adapter: str = ""
    dtype: str = ""
    tenant: str = ""
    epoch: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = int if field.name == "epoch" else str
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"Namespace.{field.name} must be {kind.__name__}, it is {_name(value)}")
        if self.epoch < 0:
            raise ValueError(f"Namespace.epoch is {self.epoch}, it must be at least 0")

    def digest(self) -> bytes:
        """Return 32 bytes over every field and its name, for `content_key`."""
        hasher = _start("namespace")
        _add_extra(hasher, {field.name: getattr(self, field.name) for field in fields(self)}, "namespace")
        return bytes(hasher.digest())


def check_key(key: Any, name: str = "key") -> None:
    """Raise TypeError or ValueError unless `key` is a key: 32 bytes."""
    if not isinstance(key, bytes):
        raise TypeError(f"{name} must be bytes, it is {_name(key)}")
    if len(key) != KEY_BYTES:
        raise ValueError(f"{name} is of {len(key)} bytes, it must be of {KEY_BYTES}")


def _new_hash(num_threads: int) -> Any:
    return blake3(max_threads=num_threads) if ALGORITHM == "blake3" else hashlib.sha256()


def _start(purpose: str, num_threads: int = 1) -> Any:
    hasher = _new_hash(num_threads)
    _add_node(hasher, b"v", f"vitcache.{purpose}.1.{ALGORITHM}".encode())
    return hasher


def _add_feature(hasher: Any, value: Any, path: str) -> None:
    if isinstance(value, Tensor):
        _add_tensor(hasher, value, path)
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.name not in _ARRAY_DTYPES or isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{path} is a {_name(value)} of dtype {value.dtype}, which cannot be hashed")
        array = np.asarray(value)
        _add_array(hasher, value.dtype.name, array.shape, _blocks(array))
    elif isinstance(value, bytes | bytearray | memoryview):
        _add_bytes(hasher, value, path)
    elif isinstance(value, list | tuple):
        _add_count(hasher, b"l", len(value))
        for position, part in enumerate(value):
            _add_feature(hasher, part, f"{path}[{position}]")
    else:
        raise TypeError(f"{path} must be an array, a tensor, bytes or a list of these, it is {_name(value)}")


def _add_extra(hasher: Any, value: Any, path: str) -> None:
    if value is None:
        _add_node(hasher, b"n", b"")
    elif isinstance(value, bool):
        _add_node(hasher, b"t", b"\1" if value else b"\0")
    elif isinstance(value, int):
        _add_node(hasher, b"i", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    elif isinstance(value, str):
        _add_node(hasher, b"s", _encode(value))
    elif isinstance(value, float) and not isinstance(value, np.generic):
        # A NaN's sign and payload depend on what computed it, not on what the caller means.
        _add_node(hasher, b"f", struct.pack("<d", math.nan if math.isnan(value) else value))
    elif isinstance(value, list | tuple):
        _add_count(hasher, b"l", len(value))
        for position, part in enumerate(value):
            _add_extra(hasher, part, f"{path}[{position}]")
    elif isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{path} has a key {name!r} of type {_name(name)}, keys must be str")
        _add_count(hasher, b"d", len(value))
        for name in sorted(value):
            _add_node(hasher, b"s", _encode(name))
            _add_extra(hasher, value[name], f"{path}[{name!r}]")
    elif isinstance(value, Tensor | np.ndarray | np.generic | bytes | bytearray | memoryview):
        _add_feature(hasher, value, path)
    else:
        raise TypeError(f"{path} is of type {_name(value)}, which cannot be hashed")


def _add_tensor(hasher: Any, tensor: Tensor, path: str) -> None:
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(f"{path} is a tensor of layout {tensor.layout} on {tensor.device}, it must be dense")
    if name not in _ARRAY_DTYPES and tensor.dtype not in _BITS:
        raise TypeError(f"{path} is a tensor of dtype {tensor.dtype}, which cannot be hashed")
    bits = tensor.detach()
    if bits.dtype in _BITS:
        bits = bits.view(_BITS[bits.dtype])
    blocks = read_back(bits) if bits.is_cuda else _blocks(_to_numpy(bits))
    _add_array(hasher, name, tuple(bits.shape), blocks)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().resolve_conj().resolve_neg().numpy()


def _add_array(hasher: Any, dtype: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    _add_node(hasher, b"a", dtype.encode())
    _add_count(hasher, b"x", len(shape))
    hasher.update(struct.pack(f"<{len(shape)}q", *shape))
    for block in blocks:
        hasher.update(block)


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the bytes of `array` in C order and little-endian, whatever its strides and byte order."""
    dtype = array.dtype.newbyteorder("<")
    is_plain = array.flags.c_contiguous and array.dtype == dtype
    for piece in [array] if is_plain else pieces(array, _BLOCK_BYTES):
        yield np.ascontiguousarray(piece, dtype=dtype).reshape(-1).view(np.uint8)


def _add_bytes(hasher: Any, value: bytes | bytearray | memoryview, path: str) -> None:
    view = memoryview(value)
    if view.ndim != 1 or view.itemsize != 1:
        raise TypeError(f"{path} is a memoryview {view.shape} of {view.format!r}, it must be flat bytes")
    _add_node(hasher, b"b", view if view.c_contiguous and view.format == "B" else view.tobytes())


def _add_node(hasher: Any, tag: bytes, payload: bytes | memoryview) -> None:
    _add_count(hasher, tag, len(payload))
    hasher.update(payload)


def _add_count(hasher: Any, tag: bytes, count: int) -> None:
    hasher.update(tag + count.to_bytes(8, "little"))


def _num_bytes(feature: Any) -> int:
    if isinstance(feature, list | tuple):
        return sum(map(_num_bytes, feature))
    if isinstance(feature, Tensor):
        return feature.numel() * feature.itemsize
    if isinstance(feature, bytes | bytearray):
        return len(feature)
    return feature.nbytes if isinstance(feature, np.ndarray | memoryview) else 0


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _name(value: Any) -> str:
    return type(value).__qualname__
