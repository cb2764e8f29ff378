"""Keys of the parts of one tensor: equal to `content_key` of each part, at a lower cost per part.

`content_key` frames the namespace and the whole of `extra` for each key. Here they are framed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch import Tensor

from vitcache.keys import content
from vitcache.keys.content import (
    Namespace,
    _add_array,
    _add_count,
    _add_extra,
    _add_node,
    _bits,
    _blocks,
    _start,
    _to_numpy,
    to_namespace,
)

# Up to this size, copying a part takes less time than another call of the hasher.
_JOINED_BYTES = 16 << 10


class _Frames(list[bytes]):
    """Stands in for a hasher: collects the bytes that are hashed."""

    update = list.append


def frame(extra: Any) -> bytes:
    """Return the bytes that `content_key` hashes for `extra`."""
    frames = _Frames()
    _add_extra(frames, extra, "extra")
    return b"".join(frames)


def frame_dict(framed: dict[str, bytes]) -> bytes:
    """Return `frame` of a dict, given the frames of its values."""
    frames = _Frames()
    _add_count(frames, b"d", len(framed))
    for name in sorted(framed):
        _add_extra(frames, name, "extra")
        frames.append(framed[name])
    return b"".join(frames)


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
    name, bits = _bits(tensor, "feature")
    size = bits.itemsize
    [block] = _blocks(_to_numpy(bits))
    data = block.data
    start = _start_in(namespace, content.ALGORITHM)
    keys = []
    for (first, last), shape, extra in zip(bounds, shapes, extras, strict=True):
        hasher = start.copy()
        part = data[first * size : last * size]
        if len(part) <= _JOINED_BYTES:
            hasher.update(b"".join((_head(name, shape), part, extra)))
        else:
            hasher.update(_head(name, shape))
            hasher.update(part)
            hasher.update(extra)
        keys.append(hasher.digest())
    return keys


@lru_cache(maxsize=64)
def _start_in(namespace: bytes | Namespace, algorithm: str) -> Any:
    """A hasher behind the namespace, to be copied. To make one takes longer than to hash a small part."""
    start = _start("content")
    _add_node(start, b"b", to_namespace(namespace))
    return start


@lru_cache(maxsize=1024)
def _head(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The bytes that `content_key` hashes between the namespace and the bytes of an array."""
    frames = _Frames()
    _add_array(frames, dtype, shape, ())
    return b"".join(frames)
