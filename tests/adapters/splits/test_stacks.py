"""Models whose items are stacks: the frames of one video, or the tiles of one image."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from tiny_family import IMAGE, VIDEO
from tiny_zoo import ZOO

from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


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
