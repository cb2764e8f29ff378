"""Keys of many items: equal to `content_key` of each item, at a lower cost per item.

`content_key` frames the namespace and the whole of `extra` for each key. Here they are framed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from vitcache.keys import digests
from vitcache.keys.arrays import array_blocks, hashed_array, tensor_array, tensor_bits
from vitcache.keys.content import FORM
from vitcache.keys.digests import digests_of
from vitcache.keys.framing import Frames, array_nodes, count_node, node, text_node, version_node
from vitcache.keys.namespace import Namespace, to_namespace


def frame(extra: Any) -> bytes:
    """Return the nodes of `extra` in a content key.

    Raises
    ------
    TypeError
        If `extra` contains an array or a tensor, whose bytes are hashed apart, or a value that cannot be
        hashed.
    """
    frames = Frames()
    frames.add_value(extra, "extra")
    if frames.arrays:
        raise TypeError("extra contains an array or a tensor, which no frame can contain")
    return b"".join(frames.nodes)


def frame_dict(framed: dict[str, bytes]) -> bytes:
    """Return `frame` of a dict, given the frames of its values."""
    nodes = [count_node(b"d", len(framed))]
    for name in sorted(framed):
        nodes += (text_node(name), framed[name])
    return b"".join(nodes)


def has_parts(tensor: Tensor) -> bool:
    """Whether `part_keys` accepts this tensor: it is contiguous and in host memory."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and sys.byteorder == "little"


def part_keys(
    tensor: Tensor,
    bounds: Iterable[tuple[int, int]],
    shapes: Sequence[tuple[int, ...]],
    extras: Iterable[bytes],
    namespace: bytes | Namespace,
) -> list[bytes]:
    """Return the `content_key` of each part of a tensor for which `has_parts` is true.

    Parameters
    ----------
    tensor
        As a tensor in `content_key`.
    bounds, shapes
        Per part, its first element, the element after its last, and its shape. Elements are counted in C
        order.
    extras
        Per part, `frame` of its `extra`.
    namespace
        As in `content_key`.
    """
    name, bits = tensor_bits(tensor, "feature")
    return _keys([name] * len(shapes), shapes, extras, _digests(bits, bounds), namespace)


def part_digests(tensor: Tensor, bounds: Iterable[tuple[int, int]]) -> list[bytes]:
    """Return the hash of the bytes of each part of a contiguous tensor in host memory, as in `part_keys`."""
    return _digests(tensor_bits(tensor, "tensor")[1], bounds)


def region_keys(
    tensor: Tensor,
    regions: Iterable[Any],
    shapes: Sequence[tuple[int, ...]],
    extras: Iterable[bytes],
    namespace: bytes | Namespace,
) -> list[bytes]:
    """As `part_keys`, for parts that are not consecutive elements, of any tensor in host memory.

    `regions` are indices of slices: each part is ``tensor[region]``.
    """
    name, bits = tensor_bits(tensor, "feature")
    array = tensor_array(bits)
    contents = digests_of([array_blocks(array[region]) for region in regions])
    return _keys([name] * len(shapes), shapes, extras, contents, namespace)


def tensor_keys(
    tensors: Iterable[Tensor], extras: Iterable[bytes], namespace: bytes | Namespace
) -> list[bytes]:
    """Return the `content_key` of each tensor. `extras` has `frame` of the `extra` of each one."""
    arrays = [hashed_array(tensor, "feature") for tensor in tensors]
    contents = digests_of(array.blocks for array in arrays)
    names, shapes = [array.dtype for array in arrays], [array.shape for array in arrays]
    return _keys(names, shapes, extras, contents, namespace)


def _digests(bits: Tensor, bounds: Iterable[tuple[int, int]]) -> list[bytes]:
    array = tensor_array(bits)
    # A view, if the elements are contiguous and little-endian.
    data = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
    size = bits.itemsize
    parts = []  # a generator would enter a frame per part
    for first, last in bounds:
        parts.append((data[first * size : last * size],))
    return digests_of(parts)


def _keys(
    names: Iterable[str],
    shapes: Sequence[tuple[int, ...]],
    extras: Iterable[bytes],
    contents: Iterable[bytes],
    namespace: bytes | Namespace,
) -> list[bytes]:
    if not isinstance(namespace, bytes):
        namespace = to_namespace(namespace)
    version, space = _shared_nodes(digests.ALGORITHM, namespace)
    versions, spaces = [version] * len(shapes), [space] * len(shapes)
    nodes = zip(versions, map(array_nodes, names, shapes), spaces, extras, contents, strict=True)
    return digests_of(zip(map(b"".join, nodes), strict=True))  # each key's nodes are one block


@lru_cache(maxsize=64)
def _shared_nodes(algorithm: str, namespace: bytes) -> tuple[bytes, bytes]:
    """Return the nodes that all keys of a namespace share: those of the version and of the namespace.

    `version_node` reads `algorithm` itself: it is an argument so that each algorithm has its own result.
    """
    return version_node(FORM), node(b"b", namespace)
