"""The Python frames that vitcache enters in one step of SGLang's released caller whose images all hit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from vitcache.bench.frames import count_frames
from vitcache.bench.sglang.scene import Scene
from vitcache.bench.sglang.sides import VITCACHE, open_sides
from vitcache.bench.sglang.turns import Kind


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As in SGLang's scheduler."""
    with torch.no_grad():
        yield


def frames_of(images: int, levels: int, kind: Kind) -> Counter[str]:
    """The frames of a step that hits, by file."""
    scene = Scene(images, rows=4, hidden=8, levels=levels, device=torch.device("cpu"))
    with open_sides(scene, kind) as sides:
        side = sides[VITCACHE]
        assert side.is_right()
        assert side.is_right()  # its steps import modules and fill caches of functions
        side.prepare()
        return count_frames(side)


@pytest.mark.parametrize(("levels", "most"), [(0, 45), (3, 75)])
def test_step_of_a_known_request_enters_few_frames_equal_for_every_number_of_images(
    levels: int, most: int
) -> None:
    counted = [frames_of(images, levels, Kind.SAME) for images in (1, 8, 32)]
    assert counted[0] == counted[1] == counted[2]
    assert counted[0]["adapters/sglang/hooks.py"] > 0
    assert counted[0].total() <= most


def test_step_of_a_new_request_enters_frames_in_proportion_to_its_images() -> None:
    one, eight, many = (frames_of(images, 0, Kind.IDENTITY).total() for images in (1, 8, 32))
    per_image = (many - eight) / 24
    assert one < eight < many
    assert eight - one == pytest.approx(7 * per_image, rel=0.1)
    assert per_image <= 80
