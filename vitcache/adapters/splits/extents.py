"""`find_extents`: how much of each mask is valid. A mask of pixels is usually a rectangle at the top left."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Extent(NamedTuple):
    """The rectangle at the top left of a mask that has all values other than 0.

    Attributes
    ----------
    height, width
        Its size. It is the whole mask if all values are 0.
    is_full
        Whether all values in the rectangle are 1.
    """

    height: int
    width: int
    is_full: bool


def find_extents(masks: Tensor) -> list[Extent]:
    """Return the extent of each mask of a tensor `(..., H, W)`, in C order."""
    *outer, height, width = masks.shape
    low, high = torch.stack(masks.aminmax()).tolist()
    if low == high == 1:
        return [Extent(height, width, True)] * torch.Size(outer).numel()
    # Sums of 0 and 1 are numbers of valid pixels, and torch adds integers faster than it compares them.
    is_binary = not masks.is_floating_point() and low >= 0 and high <= 1
    valid = masks if is_binary else masks != 0
    rows, columns = valid.sum(-1), valid.sum(-2)
    numbers = (each.flatten().tolist() for each in (_ends(rows), _ends(columns), rows.sum(-1)))
    extents = []
    for mask, bottom, right, count in zip(masks.reshape(-1, height, width), *numbers, strict=True):
        is_full = count > 0 and count == bottom * right
        if is_full and not is_binary:
            is_full = bool((mask[:bottom, :right] == 1).all())
        extents.append(Extent(bottom, right, is_full) if count else Extent(height, width, False))
    return extents


def _ends(counts: Tensor) -> Tensor:
    """Return the index after the last count that is not 0, along the last dimension."""
    indices = torch.arange(1, counts.shape[-1] + 1, device=counts.device)
    return ((counts != 0) * indices).amax(-1)
