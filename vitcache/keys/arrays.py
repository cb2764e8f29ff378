"""`HashedArray`: an array, a tensor or a file as the parts that a key hashes: a dtype, a shape, and bytes.

The names and the bytes do not depend on the platform, on the versions of NumPy and torch, or on strides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitcache.keys.readback import pieces, read_back
from vitcache.rows import check_extent

# An array that is not contiguous is hashed in blocks of at most this size, and never copied as a whole.
BLOCK_BYTES = 1 << 20

# NumPy may have two types of one kind and size, such as int64 and longlong: here they have one name. The long
# double is refused on all platforms, because its size depends on the platform.
_KINDS = {"i": "int", "u": "uint", "f": "float", "c": "complex"}
_NUMPY_NAMES: dict[type, str] = {np.bool_: "bool"} | {
    dtype.type: f"{_KINDS[dtype.kind]}{8 * dtype.itemsize}" for dtype in map(np.dtype, "bBhHiIlLqQefdFD")
}
_TORCH_NAMES = {
    getattr(torch, name): name
    for name in (*sorted(set(_NUMPY_NAMES.values())), "bfloat16", "float8_e4m3fn", "float8_e5m2")
}
# NumPy does not have these dtypes. Their elements are read as integers of the same size.
_BITS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


class HashedArray(NamedTuple):
    """An array that a key depends on. `blocks` are its bytes: the elements in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    blocks: Iterable[Any]


def hashed_array(value: Tensor | np.ndarray | np.generic, path: str) -> HashedArray:
    """Return the parts of an array, a NumPy scalar or a tensor. Its bytes are not read yet.

    Raises
    ------
    TypeError
        If the dtype or the kind of `value` cannot be hashed. The message names `path`.
    ValueError
        If the storage of a tensor has been freed or is too small. The message names `path`.
    """
    if isinstance(value, Tensor):
        name, bits = tensor_bits(value, path)
        return HashedArray(name, tuple(bits.shape), bits.nbytes, _tensor_blocks(bits, path))
    array = np.asarray(value)  # first: a subclass may have a `dtype` of its own
    name = _NUMPY_NAMES.get(array.dtype.type, "")
    if not name or isinstance(value, np.ma.MaskedArray):
        kind = type(value).__qualname__
        raise TypeError(f"{path} is a {kind} of dtype {array.dtype}, which cannot be hashed")
    return HashedArray(name, array.shape, array.nbytes, array_blocks(array))


def hashed_bytes(value: bytes | bytearray | memoryview, path: str) -> HashedArray:
    """Return bytes as an array of dtype "bytes". Raises TypeError if they are not flat; names `path`."""
    data = flat_bytes(value, path)
    return HashedArray("bytes", (len(data),), len(data), (data,))


def flat_bytes(value: bytes | bytearray | memoryview, path: str) -> Any:
    """Return a buffer of unsigned bytes; a copy only if `value` has gaps or items that are not `B`.

    Raises
    ------
    TypeError
        If `value` is a memoryview that does not have one dimension and items of one byte.
    """
    view = memoryview(value)
    if view.ndim != 1 or view.itemsize != 1:
        raise TypeError(f"{path} is a memoryview {view.shape} of {view.format!r}, it must be flat bytes")
    return view if view.c_contiguous and view.format == "B" else view.tobytes()


def tensor_bits(tensor: Tensor, path: str) -> tuple[str, Tensor]:
    """Return the name of a tensor's dtype, and the tensor in a dtype that NumPy has.

    Raises
    ------
    TypeError
        If the tensor is not dense, has no memory of its own, or has a dtype that cannot be hashed.
    ValueError
        If its elements are not all inside of its storage.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        raise TypeError(f"{path} is a tensor of layout {tensor.layout} on {tensor.device}, it must be dense")
    name = _TORCH_NAMES.get(tensor.dtype, "")
    if not name:
        raise TypeError(f"{path} is a tensor of dtype {tensor.dtype}, which cannot be hashed")
    bits = tensor.detach()
    check_extent(path, bits)
    if bits.dtype in _BITS:
        bits = bits.resolve_neg().view(_BITS[bits.dtype])
    return name, bits


def tensor_array(tensor: Tensor) -> np.ndarray:
    """Return the values of a tensor as an array: a view if possible."""
    return tensor.cpu().resolve_conj().resolve_neg().numpy()


def array_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the bytes of `array` in C order, little-endian. Any strides and byte order are accepted."""
    dtype = array.dtype.newbyteorder("<")
    is_plain = array.flags.c_contiguous and array.dtype == dtype
    for piece in [array] if is_plain else pieces(array, BLOCK_BYTES):
        yield np.ascontiguousarray(piece, dtype=dtype).reshape(-1).view(np.uint8)


def _tensor_blocks(bits: Tensor, path: str) -> Iterator[np.ndarray]:
    """`array_blocks` of a tensor. Nothing is copied before the first block is requested."""
    check_extent(path, bits)  # again: the storage may have been resized since `tensor_bits`
    yield from read_back(bits) if bits.is_cuda else array_blocks(tensor_array(bits))
