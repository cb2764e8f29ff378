"""`rows_of`: item i is index i of the pixels and of the named tensors."""

from __future__ import annotations

import pytest
import torch

from vitcache.adapters.splits.rows import rows_of

PIXELS = torch.randn(3, 4, 2)
POSITIONS = torch.arange(24).view(3, 4, 2)


def test_rows_of_gives_each_item_its_index_of_all_tensors() -> None:
    items = rows_of("positions")(None, {"pixels": PIXELS, "positions": POSITIONS, "scale": 2})
    assert [list(item) for item in items] == [["pixels", "positions"]] * 3
    for number, item in enumerate(items):
        assert torch.equal(item["pixels"], PIXELS[number : number + 1])
        assert torch.equal(item["positions"], POSITIONS[number : number + 1])


def test_rows_of_leaves_out_an_argument_that_is_none() -> None:
    items = rows_of("mask")(None, {"pixels": PIXELS, "mask": None})
    assert [list(item) for item in items] == [["pixels"]] * 3


def test_rows_of_refuses_another_number_of_rows() -> None:
    with pytest.raises(ValueError, match="positions must have 3 rows for this pixels, got 2"):
        rows_of("positions")(None, {"pixels": PIXELS, "positions": POSITIONS[:2]})
