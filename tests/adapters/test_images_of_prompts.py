"""Calls with the images of several prompts: the stock output has one element per prompt, or one tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from attached import plain_kernels  # noqa: F401
from tiny_zoo import ZOO, ZooModel
from torch import Tensor

from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

NESTED = ["idefics2", "idefics3", "smolvlm", "granite_docling"]


@pytest.fixture(params=NESTED)
def zoo(request: pytest.FixtureRequest) -> ZooModel:
    zoo = ZOO[request.param]
    if not zoo.exists:
        pytest.skip(f"this transformers has no {zoo.name}")
    return zoo


@torch.no_grad()
def test_attach_gives_the_rows_of_all_images_of_a_prompt_as_the_stock_method_does(zoo: ZooModel) -> None:
    """The first prompt has one image and padding, the second has two images."""
    model, medium = zoo.model(), zoo.media["image"]
    stock = zoo.stock(model, "image")
    one, two, three = (medium.make(seed) for seed in (0, 1, 2))
    # The padding of the first prompt is beside its image: all zeros, as the mask.
    pair, padded = medium.join([two, three]), medium.join([one, two, three])
    batch = {name: torch.cat([padded[name][:, :2].clone(), padded[name][:, 1:]]) for name in pair}
    for value in batch.values():
        value[0, 1] = 0

    whole = stock(**batch)
    rows = [flat(stock(**call).pooler_output) for call in (one, two, three)]
    attachment = attach(model)
    for _ in range(2):  # the images are encoded, then they are hits
        served = zoo.features_owner(model).get_image_features(**batch, return_dict=True)
        assert type(served.pooler_output) is type(whole.pooler_output)
        assert shapes(served.pooler_output) == shapes(whole.pooler_output)
        assert torch.equal(flat(served.pooler_output), torch.cat(rows))
    assert attachment.stats().encoded == 3


def test_attach_granite_docling_with_a_density_router_is_refused() -> None:
    zoo = ZOO["granite_docling"]
    if not zoo.exists:
        pytest.skip("this transformers has no granite_docling")
    config = zoo.model().config
    config.density_router_hidden_size = 8
    with pytest.raises(TypeError, match=r"'granite_docling'.*cannot be attached: its density router"):
        attach(transformers.GraniteDoclingForConditionalGeneration(config))


def shapes(features: Any) -> list[torch.Size]:
    return [part.shape for part in ([features] if isinstance(features, Tensor) else features)]


def flat(features: Any) -> Tensor:
    """The rows of all images. Older stock methods return one tensor: stacked images, or rows."""
    return features.flatten(0, -2) if isinstance(features, Tensor) else torch.cat([*features])
