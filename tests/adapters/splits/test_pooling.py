"""`split_by_pooling`: the crops of each image and the patches that its tokens pool."""

from __future__ import annotations

import pytest
import torch

from vitcache.adapters.splits.pooling import split_by_pooling

PATCHES = 4
GRIDS = torch.tensor([[1, 2, 0, 0], [1, 1, 1, 2]])
POOLED = torch.tensor([[0, 1], [2, -1], [4, 5], [8, 9], [11, -1]])


def arguments(**changes: torch.Tensor) -> dict:
    pixels = torch.randn(3, PATCHES, 6)
    return {"pixel_values": pixels, "image_token_pooling": POOLED, "image_grids": GRIDS} | changes


def test_split_by_pooling_gives_each_image_its_crops_and_local_patches() -> None:
    call = arguments()
    items = split_by_pooling(None, call) or []
    assert [item["pixel_values"].shape[0] for item in items] == [1, 2]
    assert torch.equal(torch.cat([item["pixel_values"] for item in items]), call["pixel_values"])
    assert items[1]["image_token_pooling"].tolist() == [[0, 1], [4, 5], [7, -1]]
    assert items[1]["image_grids"].tolist() == [[1, 1, 1, 2]]


def test_split_by_pooling_of_one_image_does_not_depend_on_the_image_before() -> None:
    call = arguments()
    _, beside = split_by_pooling(None, call) or ()
    alone = {
        "pixel_values": call["pixel_values"][1:],
        "image_token_pooling": torch.tensor([[0, 1], [4, 5], [7, -1]]),
        "image_grids": GRIDS[1:],
    }
    (item,) = split_by_pooling(None, alone) or ()
    assert all(torch.equal(beside[name], value) for name, value in item.items())


def test_split_by_pooling_of_a_video_counts_frames_times_rows_times_columns() -> None:
    call = arguments(image_grids=torch.tensor([[1, 1, 2], [3, 1, 1]]))
    items = split_by_pooling(None, call) or []
    assert [len(item["image_token_pooling"]) for item in items] == [2, 3]


@pytest.mark.parametrize(
    "pooled",
    [[[4, 5], [6, 7], [0, 1], [2, 3], [8, 9]], [[0, 1], [8, -1], [4, 5], [6, 7], [9, 10]]],
    ids=["another order", "a shared crop"],
)
def test_split_by_pooling_of_crops_without_an_order_calls_the_stock_method(pooled: list) -> None:
    assert split_by_pooling(None, arguments(image_token_pooling=torch.tensor(pooled))) is None


def test_split_by_pooling_refuses_another_number_of_tokens() -> None:
    with pytest.raises(
        ValueError, match="image_token_pooling must have 5 tokens for this image_grids, got 4"
    ):
        split_by_pooling(None, arguments(image_token_pooling=POOLED[:4]))
