"""Content keys: 32 bytes that name an item's content in a namespace.

The form of the hashed bytes has version "content.2". Keys of one version never change: another form is
another version. Numbers are little-endian. H is BLAKE3 with 32 bytes of output, or SHA-256.

    key       = H(version feature namespace extra digests)
    version   = node("v", "vitcache.content.2.blake3"), or "vitcache.content.2.sha256"
    feature   = array, or list of features
    namespace = node("b", bytes of the namespace); a `Namespace` stands for its digest
    extra     = value
    digests   = H(content) of each array: first those of the feature, then those of `extra`, in order of
                appearance

    node(tag, payload) = tag (1 byte), number of bytes of the payload (8 bytes), payload
    list      = "l", number of its parts (8 bytes), parts. A tuple is a list
    array     = node("a", name of its dtype), "x", number of its dimensions (8 bytes), each size (8 bytes)

The content of an array is its elements in C order without gaps, each little-endian. A complex element is its
real and its imaginary part. The name of a dtype is bool, int8 to int64, uint8 to uint64, float16, float32,
float64, bfloat16, float8_e4m3fn, float8_e5m2, complex64 or complex128. Bytes in the feature, such as an
encoded file, are an array of dtype "bytes" and one dimension; their content is the bytes themselves.

A value of `extra` is one of:

    None         node("n", no bytes)
    bool         node("t", 1 byte: 0 or 1)
    int          node("i", two's complement of n // 8 + 1 bytes); n is the bit length of the absolute value
    float        node("f", IEEE 754 binary64); every NaN is 00 00 00 00 00 00 f8 7f
    str          node("s", UTF-8); a surrogate is encoded by itself, as 3 bytes
    bytes        node("b", bytes)
    list, tuple  list of values
    dict         "d", number of its keys (8 bytes); for each key, by code points, the key as a str, its value
    array        array

No part of the message is the beginning of another part of the same kind, and the nodes before the digests
determine the number of digests. So different content gives different messages, and equal keys of different
content would be a collision of H. The content of an array is hashed apart from the other parts, so that it
can be hashed where it is, at its own alignment, while the rest of the message is a few hundred bytes.

The digest of a `Namespace`, the key of an identifier (`key_from_id`) and a folded key (`fold_keys`) are H of
the following parts. Their forms have version 1.

    version "vitcache.namespace.1.blake3", the dict of the fields
    version "vitcache.identifier.1.blake3", namespace, the identifier as a str, bytes or int of `extra`
    version "vitcache.given.1.blake3", namespace, node("b", the given key)
"""

from __future__ import annotations

from typing import Any

from vitcache.arguments import to_int
from vitcache.keys.digests import THREADED_BYTES
from vitcache.keys.framing import Frames, node, version_node
from vitcache.keys.namespace import Namespace, to_namespace

KEY_BYTES = 32
FORM = "content.2"


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
        tensor without memory of its own (such as a fake tensor), a Python bool, int, float or str, and a
        callable are refused.
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
        hashes. The key does not depend on `num_threads`. To compute many keys in parallel, use `KeyThreads`.

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
        If `num_threads` is less than 1; if elements of a tensor are outside of its storage, which was freed
        or resized (the message gives the position of the tensor, the needed and the found bytes). If
        `feature` or `extra` contains itself, or is nested too deeply for Python's stack.

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

    Keys do not depend on the process, the platform, or the versions of NumPy and torch: they may be stored.
    The docstring of the module `vitcache.keys.content` describes the hashed bytes.

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
    frames = Frames(version_node(FORM))
    frames.add_feature(feature, "feature")
    if num_threads > 1 and sum(array.num_bytes for array in frames.arrays) < THREADED_BYTES:
        num_threads = 1
    frames.nodes.append(node(b"b", namespace))
    frames.add_value(extra, "extra")
    return frames.key(num_threads)


def check_key(key: Any, name: str = "key") -> None:
    """Raise TypeError if `key` is not bytes, and ValueError if it does not have 32 bytes."""
    if not isinstance(key, bytes):
        raise TypeError(f"{name} must be bytes, got {type(key).__qualname__}")
    if len(key) != KEY_BYTES:
        raise ValueError(f"{name} has {len(key)} bytes, it must have {KEY_BYTES}")
