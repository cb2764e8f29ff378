"""Keys of the parts of one tensor: equal to `content_key` of each part, at a lower cost per part.

`content_key` frames the namespace and the whole of `extra` for each key. Here they are framed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from vitcache.keys.arrays import array_blocks, tensor_array, tensor_bits
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
    shapes: Iterable[tuple[int, ...]],
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
    size = bits.itemsize
    [block] = array_blocks(tensor_array(bits))
    data = block.data
    # Lists, because a generator would enter a frame per part.
    contents = digests_of([[data[first * size : last * size]] for first, last in bounds])
    version, space = version_node(FORM), node(b"b", to_namespace(namespace))
    return digests_of(
        [
            [b"".join((version, array_nodes(name, shape), space, extra, content))]
            for shape, extra, content in zip(shapes, extras, contents, strict=True)
        ]
    )
