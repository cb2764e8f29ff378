"""The padding of an image to the other images of its call is not part of its key."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from tiny_zoo import ZOO

from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


@pytest.mark.parametrize(
    "name", ["llava_pixtral", "mistral3", "lighton_ocr", "llava_next", "llava_next_video"]
)
def test_image_has_the_same_key_alone_and_in_a_call_with_padding(name: str) -> None:
    zoo = ZOO[name]
    model = zoo.model()
    attachment = attach(model)
    method = zoo.features_owner(model).get_image_features
    medium = zoo.media["image"]
    calls = [medium.make(seed) for seed in (0, 1, 2)]
    together = medium.join(calls)
    ones = [call | {"pixel_values": torch.ones_like(call["pixel_values"])} for call in calls]
    padding = medium.join(ones)["pixel_values"] == 0
    assert padding.any()
    together["pixel_values"][padding] = torch.randn(int(padding.sum()))
    with torch.no_grad():
        alone = [method(**call).pooler_output[0] for call in calls]
        rows = method(**together).pooler_output
    assert all(map(torch.equal, rows, alone))
    assert (attachment.stats().encoded, attachment.stats().hits) == (3, 3)
