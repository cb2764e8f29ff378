"""`split_by_two_resolutions`: index i of both tensors is image i."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from tiny_zoo import ZOO

from vitcache.adapters.splits.two_resolutions import split_by_two_resolutions
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


def test_items_are_the_same_index_of_both_tensors() -> None:
    low, high = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 8, 8)
    calls = split_by_two_resolutions(None, {"pixel_values": low, "high_res_pixel_values": high, "more": None})
    assert [list(call) for call in calls] == [["pixel_values", "high_res_pixel_values"]] * 3
    for name, pixels in (("pixel_values", low), ("high_res_pixel_values", high)):
        assert torch.equal(torch.cat([call[name] for call in calls]), pixels)


def test_wrong_number_of_images_raises_with_both_numbers() -> None:
    pixels = {"pixel_values": torch.zeros(2, 3, 4, 4), "high_res_pixel_values": torch.zeros(3, 3, 8, 8)}
    message = "high_res_pixel_values must have 2 images for this pixel_values, got 3"
    with pytest.raises(ValueError, match=message):
        split_by_two_resolutions(None, pixels)


def test_other_pixels_in_either_resolution_are_another_entry() -> None:
    zoo = ZOO["deepseek_vl_hybrid"]
    model = zoo.model()
    attachment = attach(model)
    call = zoo.media["image"].make(0)
    method = zoo.features_owner(model).get_image_features
    with torch.no_grad():
        for name in ("", *call, ""):
            method(**call | {key: value + 1 for key, value in call.items() if key == name})
    assert (attachment.stats().encoded, attachment.stats().hits) == (3, 1)
