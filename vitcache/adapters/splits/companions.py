"""Tensors beside the pixels that decide the rows of an item: positions, masks, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts, bounds_of, check_total
from vitcache.keys.parts import part_digests

# A part of at most this number of integers is in its identity as numbers, else as the hash of its bytes.
_MAX_NUMBERS = 8


def identities_of(name: str, tensor: Tensor, ends: Sequence[int] | None = None) -> list[tuple[Any, ...]]:
    """Return the identity of each part of a tensor: its name, dtype and shape, and its values or their hash.

    Part i is index i of the first dimension. With `ends`, it is the indices from `ends[i]` to `ends[i + 1]`.
    Two parts have equal identities if they are equal in all of these.
    """
    _, *shape = tensor.shape
    head = name, str(tensor.dtype), *shape
    size = tensor[0].numel() if len(tensor) else 0
    if ends is None and size <= _MAX_NUMBERS and not (tensor.is_floating_point() or tensor.is_complex()):
        return [(head, *numbers) for numbers in tensor.reshape(len(tensor), size).tolist()]
    digests = part_digests(tensor.cpu().contiguous(), bounds_of(ends or range(len(tensor) + 1), size))
    return [(head, digest) for digest in digests]


def add_tensors(parts: CallParts, tensors: dict[str, Tensor]) -> CallParts:
    """Return the parts of a call in which item i has index i of these tensors as further arguments.

    Raises
    ------
    ValueError
        If a tensor does not have one index per item.
    """
    if not tensors:
        return parts
    identities = parts.identities or [()] * len(parts.shapes)
    for name, tensor in tensors.items():
        check_total(name, len(tensor), "rows", parts.names[0], len(parts.shapes))
        added = identities_of(name, tensor)
        identities = [(*known, *more) for known, more in zip(identities, added, strict=True)]

    def item_arguments(item: int) -> dict[str, Any]:
        further = {name: tensor[item : item + 1] for name, tensor in tensors.items()}
        return parts.arguments(item) | further

    return parts._replace(names=(*parts.names, *tensors), identities=identities, arguments=item_arguments)
