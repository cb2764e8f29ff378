"""Keys of many items: equal to `content_key` of each item, at a lower cost per item.

`content_key` frames the namespace and the whole of `extra` for each key. Here they are framed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

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
    size = bits.itemsize
    blocks = list(array_blocks(tensor_array(bits)))
    data = blocks[0].data if len(blocks) == 1 else memoryview(b"".join(block.data for block in blocks))
    # Lists, because a generator would enter a frame per part.
    return digests_of([[data[first * size : last * size]] for first, last in bounds])


def _keys(
    names: Iterable[str],
    shapes: Iterable[tuple[int, ...]],
    extras: Iterable[bytes],
    contents: Iterable[bytes],
    namespace: bytes | Namespace,
) -> list[bytes]:
    version, space = version_node(FORM), node(b"b", to_namespace(namespace))
    return digests_of(
        [
            [b"".join((version, array_nodes(name, shape), space, extra, content))]
            for name, shape, extra, content in zip(names, shapes, extras, contents, strict=True)
        ]
    )
