"""`split_by_stack`: items are the frames of one video, or the tiles of one image."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from tiny_family import IMAGE, VIDEO
from tiny_zoo import ZOO

from vitcache.adapters.splits.stacks import split_by_stack
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


def test_items_are_consecutive_and_have_one_slice_per_frame() -> None:
    pixels = torch.randn(2, 5, 3, 4, 4)
    parts = split_by_stack(None, {"pixel_values_videos": pixels, "vision_feature_layer": None})
    assert parts.names == ("pixel_values_videos",)
    assert parts.bounds is not None
    for item, (first, last) in enumerate(parts.bounds):
        call = parts.item_call(item)
        assert torch.equal(call.pixels, pixels[item : item + 1])
        assert torch.equal(pixels.flatten()[first:last].view(parts.shapes[item]), call.pixels)
        assert call.slices == pixels.shape[1]
    rows = 7  # of each frame
    assert parts.elements([rows * pixels.shape[1]] * len(pixels)) == [rows] * (len(pixels) * pixels.shape[1])


@torch.no_grad()
def test_videos_of_perception_lm_are_items_of_its_image_method() -> None:
    zoo = ZOO["perception_lm"]
    model = zoo.model()
    attachment = attach(model)
    prompt = zoo.prompt(model, "image", 0, 1)
    as_image = model(**prompt).logits
    prompt["pixel_values_videos"] = prompt.pop("pixel_values")
    prompt["input_ids"][prompt["input_ids"] == IMAGE] = VIDEO
    assert model(**prompt).logits.shape == as_image.shape
    assert (attachment.stats().encoded, attachment.stats().hits) == (2, 2)
