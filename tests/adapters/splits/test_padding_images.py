"""Images of zeros are padding for Idefics and SmolVLM, whatever their mask is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from tiny_zoo import ZOO
from torch import Tensor

from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

SIZE = (3, 16, 16)


def zeros_but(place: int, value: float) -> Tensor:
    pixels = torch.zeros(SIZE)
    pixels.view(-1)[place] = value
    return pixels


IMAGES = {
    "zeros": torch.zeros(SIZE),
    "negative zeros": -torch.zeros(SIZE),
    "the first pixel alone": zeros_but(0, 1.0),
    "the last pixel alone": zeros_but(-1, -1.0),
    "a small pixel": zeros_but(-1, 1e-6),
    "a tiny pixel": zeros_but(7, 1e-30),
    "not a number": zeros_but(7, float("nan")),
    "noise": torch.randn(SIZE, generator=torch.Generator().manual_seed(1)),
}


def flat(features: Any) -> Tensor:
    return features.flatten(0, -2) if isinstance(features, Tensor) else torch.cat([*features])


@torch.no_grad()
@pytest.mark.parametrize("mask", [1, 0], ids=["valid", "masked"])
@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("name", ["idefics2", "idefics3", "smolvlm"])
def test_attach_drops_the_images_that_the_stock_method_drops(name: str, image: str, mask: int) -> None:
    """Three images in a prompt: noise, the image, and noise."""
    zoo = ZOO[name]
    model = zoo.model()
    calls = [zoo.media["image"].make(seed) for seed in (0, 0, 1)]
    call = zoo.media["image"].join(calls)
    call["pixel_values"][0, 1] = IMAGES[image]
    call["pixel_attention_mask"][0, 1] = mask
    stock = zoo.stock(model, "image")
    whole = flat(stock(**call).pooler_output)
    attach(model)
    served = flat(zoo.features_owner(model).get_image_features(**call, return_dict=True).pooler_output)
    assert served.shape == whole.shape
    torch.testing.assert_close(served, whole, equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize("value", [1e-9, 1.0])
def test_pixels_that_are_zero_in_the_models_dtype_are_served_by_the_stock_method(value: float) -> None:
    zoo = ZOO["idefics3"]
    model = zoo.model(torch.float16)
    call = zoo.media["image"].join([zoo.media["image"].make(seed) for seed in (0, 1)])
    call["pixel_values"][0, 1] = value
    whole = flat(zoo.stock(model, "image")(**call).pooler_output)
    attachment = attach(model)
    served = flat(zoo.features_owner(model).get_image_features(**call, return_dict=True).pooler_output)
    assert served.shape == whole.shape
    assert attachment.stats().bypassed == (value < 1)
