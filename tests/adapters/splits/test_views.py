"""`split_views`: the global view of each image and its local tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitcache.adapters.splits.views import split_views

VIEWS, TILES = torch.randn(3, 3, 8, 8), torch.randn(5, 3, 4, 4)
COUNTS = [2, 0, 3]


def arguments(**changes: Any) -> dict[str, Any]:
    return {"pixel_values": VIEWS, "pixel_values_local": TILES, "num_local_patches": COUNTS} | changes


@pytest.mark.parametrize("counts", [COUNTS, torch.tensor(COUNTS)], ids=["a list", "a tensor"])
def test_split_views_gives_each_image_its_view_and_tiles(counts: Any) -> None:
    first, second, third = split_views(None, arguments(num_local_patches=counts)) or []
    assert torch.equal(torch.cat([item["pixel_values"] for item in (first, second, third)]), VIEWS)
    assert torch.equal(first["pixel_values_local"], TILES[:2])
    assert torch.equal(third["pixel_values_local"], TILES[2:])
    assert [item["num_local_patches"] for item in (first, second, third)] == [[2], None, [3]]
    assert second["pixel_values_local"] is None


def test_split_views_of_an_image_without_tiles_does_not_depend_on_other_tiles() -> None:
    alone = arguments(pixel_values=VIEWS[1:2], pixel_values_local=None, num_local_patches=[0])
    (item,) = split_views(None, alone) or []
    beside = (split_views(None, arguments()) or [])[1]
    assert torch.equal(item.pop("pixel_values"), beside.pop("pixel_values"))
    assert item == beside


def test_split_views_gives_each_image_its_grid() -> None:
    items = split_views(None, arguments(patches_grid=[[2, 1], [1, 1], [1, 3]])) or []
    assert [item["patches_grid"] for item in items] == [[[2, 1]], [[1, 1]], [[1, 3]]]


def test_split_views_of_tiles_without_numbers_calls_the_stock_method() -> None:
    assert split_views(None, arguments(num_local_patches=None)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_local_patches": [2, 3]}, "num_local_patches must have 3 numbers for this pixel_values, got 2"),
        (
            {"num_local_patches": [2, 0, 2]},
            "pixel_values_local must have 4 tiles for this num_local_patches, got 5",
        ),
        ({"patches_grid": [[2, 1]]}, "patches_grid must have 3 grids for this pixel_values, got 1"),
    ],
)
def test_split_views_refuses_numbers_that_disagree(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_views(None, arguments(**changes))
