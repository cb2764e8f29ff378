"""Content keys: 32 bytes that name an item's content in a namespace.

The hash is computed over a sequence of nodes. A node is a tag of one byte, the length of its payload (8
bytes, little-endian) and the payload. A container is a tag, its number of children and the children. An array
is its dtype, its shape and its bytes. So inputs of different content are hashed as different bytes. No key
depends on `pickle` or `repr`.
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

# An array that is not contiguous is hashed in blocks of at most this size, and never copied as a whole.
_BLOCK_BYTES = 1 << 20
# BLAKE3 starts new threads for each key. Below this size, starting them takes as long as hashing.
_THREADED_BYTES = 1 << 20

_ARRAY_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
}
# NumPy does not have these dtypes. They are hashed as integers of the same size, under the name of the dtype.
_BITS = {torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8, torch.float8_e5m2: torch.uint8}


def content_key(
    feature: Any, *, namespace: bytes | Namespace = b"", extra: Any = None, num_threads: int = 1
) -> bytes:
    """Return the key of an item: 32 bytes over the content of `feature`, `namespace` and `extra`.

    Equal content gives equal keys. The content of an array or tensor is its shape, dtype and values: a NumPy
    array of either byte order, a CPU tensor and a CUDA tensor give the same key, contiguous or not. Values
    are compared by their bits: 0.0 and -0.0 differ, and two NaNs of the same bits are equal. A list and a
    tuple of the same parts give the same key.

    Parameters
    ----------
    feature
        One of: a NumPy array or scalar; a dense tensor; the bytes of an encoded file (`bytes`, `bytearray`,
        or a `memoryview` of one dimension and items of one byte); a list or tuple of these, at any depth.
        Arrays and tensors may have any shape. Their dtype is bool, int8 to int64, uint8 to uint64, float16,
        float32, float64, bfloat16, float8_e4m3fn, float8_e5m2, complex64 or complex128. A masked array, a
        Python bool, int, float or str, and a callable are refused.
    namespace
        Names everything that the encoder's output depends on, except the item: a `Namespace`, or bytes such
        as its `digest()`. A `Namespace` and its digest give the same key.
    extra
        Further input of the encoder, such as its keyword arguments: None, bool, int, float, str, bytes,
        arrays, tensors and NumPy scalars, and lists, tuples and dicts of these. The keys of a dict must be
        `str`; their order does not change the content key. 1, 1.0 and True give different keys. A NumPy
        scalar is hashed as an array of shape ``()``: np.int64(1) and 1 give different keys. All NaNs of type
        `float` give the same key.
    num_threads
        Number of threads that hash this feature, an int of at least 1. Only BLAKE3 uses more than one, and
        only for a feature of 1 MiB or more. If the process cannot start these threads, the calling thread
        hashes. The key does not depend on `num_threads`. To compute many keys in
        parallel, use `KeyThreads`.

    Returns
    -------
    bytes
        32 bytes.

    Raises
    ------
    TypeError
        If `feature` or a part of `extra` is not one of the types, dtypes and layouts above (the message gives
        the position of that part); if `namespace` is neither bytes nor a `Namespace`; if `num_threads` is not
        an int, or is a bool.
    ValueError
        If `num_threads` is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from vitcache import Namespace, content_key
    >>> namespace = Namespace("my-model", tenant="a")
    >>> pixels = np.zeros((2, 3), np.float32)
    >>> key = content_key(pixels, namespace=namespace)
    >>> len(key)
    32
    >>> content_key(torch.zeros(2, 3), namespace=namespace) == key
    True
    >>> content_key(pixels, namespace=namespace, extra={"grid": [1, 2, 3]}) == key
    False

    Notes
    -----
    The algorithm is BLAKE3, or SHA-256 if the package `blake3` is not installed. The algorithm's name is part
    of the hashed bytes. Any thread may call. Calls run in parallel, because hashing releases the GIL.

    An array that is not contiguous is hashed block by block, and never copied as a whole. A CUDA tensor is
    copied to pinned memory block by block; each block is copied while the block before it is hashed. The
    copies run after the work that is queued on the current stream of the tensor's device, and the calling
    thread waits for them. To avoid the copies and the wait, give the item a key of your own.
    """
    namespace = to_namespace(namespace)
    if callable(feature):
        raise TypeError(
            "feature is a callable: call it and pass the result, or give the item a key of its own"
        )
    num_threads = to_int("num_threads", num_threads, 1)
    hasher = _start("content", num_threads if _num_bytes(feature) >= _THREADED_BYTES else 1)
    _add_node(hasher, b"b", namespace)
    _add_feature(hasher, feature, "feature")
    _add_extra(hasher, extra, "extra")
    return bytes(hasher.digest())


@dataclass(frozen=True)
class Namespace:
    """Names everything that the rows depend on, except the item. Different namespaces share no keys.

    Parameters
    ----------
    model, revision
        Names of the vision tower and of its weights.
    processor
        Fingerprint of the processor (`processor_fingerprint`). Needed if keys are computed from encoded files
        or decoded pixels, and not from features.
    adapter, dtype
        Names of the vision tower's adapter and of the dtype of the rows.
    tenant
        Name of the tenant. Entries are shared only between items of the same tenant.
    epoch
        A number of at least 0. Increase it when the weights are changed in place.

    Raises
    ------
    TypeError
        If `epoch` is not an int, or is a bool; if another field is not a str.
    ValueError
        If `epoch` is negative.

    Examples
    --------
    >>> from vitcache import Namespace, content_key
    >>> one, two = (Namespace("my-model", tenant=name) for name in ("one", "two"))
    >>> content_key(b"a photo", namespace=one) == content_key(b"a photo", namespace=two)
    False

    Notes
    -----
    Immutable: any thread may use it.
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
                raise TypeError(f"Namespace.{field.name} must be {kind.__name__}, got {_type_name(value)}")
        if self.epoch < 0:
            raise ValueError(f"Namespace.epoch is {self.epoch}, it must be at least 0")

    def digest(self) -> bytes:
        """Return the hash of all fields and their names, 32 bytes: the namespace as bytes."""
        hasher = _start("namespace")
        _add_extra(hasher, {field.name: getattr(self, field.name) for field in fields(self)}, "namespace")
        return bytes(hasher.digest())


def to_namespace(value: Any) -> bytes:
    """Return a namespace as bytes: the digest of a `Namespace`, or `value` itself if it is bytes.

    Raises
    ------
    TypeError
        If `value` is neither bytes nor a `Namespace`.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, Namespace):
        return value.digest()
    raise TypeError(f"namespace must be bytes or a Namespace, got {_type_name(value)}")


def check_key(key: Any, name: str = "key") -> None:
    """Raise TypeError if `key` is not bytes, and ValueError if it does not have 32 bytes."""
    if not isinstance(key, bytes):
        raise TypeError(f"{name} must be bytes, got {_type_name(key)}")
    if len(key) != KEY_BYTES:
        raise ValueError(f"{name} has {len(key)} bytes, it must have {KEY_BYTES}")


def _new_hash(num_threads: int) -> Any:
    if ALGORITHM != "blake3":
        return hashlib.sha256()
    try:
        return blake3(max_threads=num_threads)
    except BaseException as error:
        # BLAKE3 starts its threads here. If one cannot be started, its Rust code panics, and the exception
        # of a panic is not an Exception and cannot be imported.
        if num_threads == 1 or type(error).__name__ != "PanicException":
            raise
        return blake3(max_threads=1)


def _start(purpose: str, num_threads: int = 1) -> Any:
    hasher = _new_hash(num_threads)
    _add_node(hasher, b"v", f"vitcache.{purpose}.1.{ALGORITHM}".encode())
    return hasher


def _add_feature(hasher: Any, value: Any, path: str) -> None:
    if isinstance(value, Tensor):
        _add_tensor(hasher, value, path)
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.name not in _ARRAY_DTYPES or isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{path} is a {_type_name(value)} of dtype {value.dtype}, which cannot be hashed")
        array = np.asarray(value)
        _add_array(hasher, value.dtype.name, array.shape, _blocks(array))
    elif isinstance(value, bytes | bytearray | memoryview):
        _add_bytes(hasher, value, path)
    elif isinstance(value, list | tuple):
        _add_count(hasher, b"l", len(value))
        for position, part in enumerate(value):
            _add_feature(hasher, part, f"{path}[{position}]")
    else:
        raise TypeError(
            f"{path} must be an array, a tensor, bytes or a list of these, got {_type_name(value)}"
        )


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
        # The sign and the payload of a NaN depend on the operation that made it; callers do not choose them.
        _add_node(hasher, b"f", struct.pack("<d", math.nan if math.isnan(value) else value))
    elif isinstance(value, list | tuple):
        _add_count(hasher, b"l", len(value))
        for position, part in enumerate(value):
            _add_extra(hasher, part, f"{path}[{position}]")
    elif isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{path} has a key {name!r} of type {_type_name(name)}, keys must be str")
        _add_count(hasher, b"d", len(value))
        for name in sorted(value):
            _add_node(hasher, b"s", _encode(name))
            _add_extra(hasher, value[name], f"{path}[{name!r}]")
    elif isinstance(value, Tensor | np.ndarray | np.generic | bytes | bytearray | memoryview):
        _add_feature(hasher, value, path)
    else:
        raise TypeError(f"{path} is of type {_type_name(value)}, which cannot be hashed")


def _add_tensor(hasher: Any, tensor: Tensor, path: str) -> None:
    name, bits = _bits(tensor, path)
    blocks = read_back(bits) if bits.is_cuda else _blocks(_to_numpy(bits))
    _add_array(hasher, name, tuple(bits.shape), blocks)


def _bits(tensor: Tensor, path: str) -> tuple[str, Tensor]:
    """Return the name of a tensor's dtype, and the tensor in a dtype that NumPy has."""
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(f"{path} is a tensor of layout {tensor.layout} on {tensor.device}, it must be dense")
    if name not in _ARRAY_DTYPES and tensor.dtype not in _BITS:
        raise TypeError(f"{path} is a tensor of dtype {tensor.dtype}, which cannot be hashed")
    bits = tensor.detach()
    if bits.dtype in _BITS:
        bits = bits.view(_BITS[bits.dtype])
    return name, bits


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().resolve_conj().resolve_neg().numpy()


def _add_array(hasher: Any, dtype: str, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    _add_node(hasher, b"a", dtype.encode())
    _add_count(hasher, b"x", len(shape))
    hasher.update(struct.pack(f"<{len(shape)}q", *shape))
    for block in blocks:
        hasher.update(block)


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the bytes of `array` in C order, little-endian. Any strides and byte order are accepted."""
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


def _type_name(value: Any) -> str:
    return type(value).__qualname__
