"""`find_extents`: the rectangle at the top left of a mask that has all its valid pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitcache.adapters.splits.extents import Extent, find_extents

DTYPES = [torch.int64, torch.bool, torch.uint8, torch.float32, torch.bfloat16]


def mask(*rows: str) -> Tensor:
    return torch.tensor([[int(value) for value in row] for row in rows])


MASKS = {
    "all valid": (mask("111", "111"), Extent(2, 3, True)),
    "padding at the right": (mask("110", "110"), Extent(2, 2, True)),
    "padding at the bottom": (mask("111", "000"), Extent(1, 3, True)),
    "padding at both": (mask("110", "000"), Extent(1, 2, True)),
    "no valid pixel": (mask("000", "000"), Extent(2, 3, False)),
    "a hole": (mask("111", "101"), Extent(2, 3, False)),
    "a missing corner": (mask("111", "110"), Extent(2, 3, False)),
    "padding at the left": (mask("011", "011"), Extent(2, 3, False)),
    "a diagonal": (mask("100", "010"), Extent(2, 2, False)),
}
BEYOND_ONE = {
    "twos": (mask("220", "220"), Extent(2, 2, False)),
    "the sum of a full mask": (mask("201", "111"), Extent(2, 3, False)),
    "minus one": (-mask("111", "111"), Extent(2, 3, False)),
    "ones beside twos": (mask("110", "110"), Extent(2, 2, True)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_find_extents_of_masks_of_zeros_and_ones(dtype: torch.dtype) -> None:
    together = torch.stack([each for each, _ in MASKS.values()]).to(dtype)
    assert find_extents(together[None]) == [extent for _, extent in MASKS.values()]
    for number, (_, extent) in enumerate(MASKS.values()):
        assert find_extents(together[number : number + 1]) == [extent]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_find_extents_of_masks_with_other_values_are_not_full(dtype: torch.dtype) -> None:
    every = MASKS | BEYOND_ONE
    together = torch.stack([each for each, _ in every.values()]).to(dtype)
    assert find_extents(together[None]) == [extent for _, extent in every.values()]


def test_find_extents_of_a_mask_with_nan_is_not_full() -> None:
    assert find_extents(torch.tensor([[[1.0, float("nan")]]])) == [Extent(1, 2, False)]
