"""The check of a split that no test has verified: which calls show that it is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from some_vlm import HIDDEN, SIDE, SomeVlm, images
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.transformers import attach

pytestmark = pytest.mark.transformers


class GridVlm(SomeVlm):
    """Encodes lines of pixels; `image_grid_thw` has the lines of each image."""

    def lines(self, pixel_values: Tensor, image_grid_thw: Tensor) -> list[Tensor]:
        return list(self.vision(pixel_values).split(image_grid_thw.prod(-1).tolist()))

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Any:
        return BaseModelOutputWithPooling(pooler_output=tuple(self.lines(pixel_values, image_grid_thw)))


class StackedVlm(GridVlm):
    """Stacks the rows of all images, padded to the longest."""

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Any:
        stacked = pad_sequence(self.lines(pixel_values, image_grid_thw), batch_first=True)
        return BaseModelOutputWithPooling(pooler_output=stacked)


class ReversedVlm(GridVlm):
    """Returns the images of a call in reverse."""

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Any:
        return BaseModelOutputWithPooling(
            pooler_output=tuple(reversed(self.lines(pixel_values, image_grid_thw)))
        )


def call(*lines: int, seeds: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    """Images with these numbers of lines; equal seeds give equal lines."""
    pixels = [
        torch.randn(count, SIDE, generator=torch.Generator().manual_seed(seed))
        for count, seed in zip(lines, seeds or range(len(lines)), strict=True)
    ]
    return {
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.tensor([[1, 1, count] for count in lines]),
    }


@torch.no_grad()
def test_split_that_fits_equal_items_is_checked_again_with_different_items() -> None:
    model = StackedVlm()
    attachment = attach(model)
    assert model.get_image_features(**call(4, 4)).pooler_output.shape == (2, 4, HIDDEN)
    entries = len(attachment.cache)
    with pytest.raises(TypeError, match=r"StackedVlm gives 6, 6 rows .* but 4, 6 rows for each item alone"):
        model.get_image_features(**call(4, 6, seeds=(7, 8)))
    assert len(attachment.cache) == entries == 2


@torch.no_grad()
def test_call_with_equal_images_verifies_no_split() -> None:
    model = ReversedVlm()
    attachment = attach(model)
    model.get_image_features(**call(4, 4, seeds=(0, 0)))
    with pytest.raises(TypeError, match=r"ReversedVlm gives rows for item 0 of a call that differ"):
        model.get_image_features(**call(4, 4))
    assert len(attachment.cache) == 1


@torch.no_grad()
def test_checked_calls_encode_each_item_once_and_the_whole_call_once() -> None:
    model, stock = GridVlm(), GridVlm()
    towers: list[int] = []
    model.vision.register_forward_hook(lambda module, args, output: towers.append(len(args[0])))
    attachment = attach(model)
    for lines in ((4, 6, 5), (4, 4), (6, 4, 5)):
        ours = model.get_image_features(**call(*lines, seeds=lines)).pooler_output
        theirs = stock.get_image_features(**call(*lines, seeds=lines)).pooler_output
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
    assert towers == [4, 6, 5, 15, 8]  # one call for all three items, one for an item twice; then hits
    assert attachment.stats() == AttachStats(encoded=3, hits=4, duplicates=1)


@torch.no_grad()
def test_each_kind_of_call_is_compared_once() -> None:
    model = GridVlm()
    towers: list[int] = []
    model.vision.register_forward_hook(lambda module, args, output: towers.append(len(args[0])))
    attach(model)
    for lines, seeds in (((4, 6), (0, 1)), ((4, 4), (0, 2)), ((5, 7), (3, 4)), ((5, 5), (3, 5))):
        model.get_image_features(**call(*lines, seeds=seeds))
    assert towers == [4, 6, 10, 4, 8, 5, 7, 5]


class PairedVlm(SomeVlm):
    """Pools each pair of images of a call."""

    def get_image_features(self, pixel_values: Tensor, **options: Any) -> Any:
        rows = self.vision(pixel_values)
        return BaseModelOutputWithPooling(pooler_output=rows[: (len(rows) + 1) // 2])


@torch.no_grad()
def test_call_that_repeats_one_image_is_compared_once() -> None:
    model = PairedVlm()
    attachment = attach(model)
    with pytest.raises(TypeError, match=r"PairedVlm gives 4 rows .* but 4, 4 rows for each item alone"):
        model.get_image_features(images(0, 0))
    assert len(attachment.cache) == 0
    model = SomeVlm()
    towers: list[int] = []
    model.vision.register_forward_hook(lambda module, args, output: towers.append(len(args[0])))
    attach(model)
    for _ in range(3):
        model.get_image_features(images(0, 0))
    assert towers == [1, 2]


@torch.no_grad()
def test_rows_that_are_not_finite_are_compared_by_place() -> None:
    model, stock = SomeVlm(), SomeVlm()
    attach(model)
    pixels = images(0, 1)
    pixels[0, 0, 0] = torch.nan
    ours, theirs = (each.get_image_features(pixels).pooler_output for each in (model, stock))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@torch.no_grad()
def test_call_with_pixels_of_another_rank_has_a_form_of_its_own() -> None:
    model, stock = SomeVlm(), SomeVlm()
    attach(model)
    for pixels in (images(0, 1), images(0, 1)[:, 0], images(2, 3)):
        ours, theirs = (each.get_image_features(pixels).pooler_output for each in (model, stock))
        assert ours.shape == theirs.shape
