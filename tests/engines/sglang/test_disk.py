"""A disk below the host tier: a server that starts again finds the images of the time before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sglang_scene.prompts import images
from sglang_scene.restarts import Server, serving

from vitcache.adapters.sglang import stats

NUM_IMAGES = 3
SAME = ("tokens", "logprobs", "prompt_logprobs", "prompt_tokens")
Serve = Callable[..., Any]


def fill(server: Server, num_images: int = NUM_IMAGES) -> None:
    """Answer requests of images until the disk has all of them: each is found twice."""
    for _ in range(3):
        assert server.answer(images(num_images))
    assert server.tower.num_encodes == num_images


def tier() -> Any:
    """The counts of the disk."""
    [cache] = stats().caches
    [found] = cache.tiers
    return found


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Serve:
    return lambda **options: serving(monkeypatch, tmp_path / "disk", **options)


@pytest.mark.parametrize("levels", [0, 2])
def test_server_that_starts_again_encodes_no_image_of_the_disk(serve: Serve, levels: int) -> None:
    with serve(levels=levels) as first:
        fill(first)
    with serve(levels=levels) as second:
        assert second.answer(images(NUM_IMAGES))
        assert second.tower.num_encodes == 0
        assert second.answer(images(NUM_IMAGES + 1))
        assert second.tower.num_encodes == 1
        assert (tier().hits, tier().misses) == (NUM_IMAGES, 1)
        assert stats().errors == 0


@pytest.mark.engines("stock", "disk")
def test_engine_that_starts_again_answers_with_the_images_of_the_disk(result: Any) -> None:
    stock, found = result("stock")["chat"], result("disk")
    again, new = found["restarted"]
    assert [turn["encodes"] for turn in (again, new)] == [0, 1]
    assert [turn["encodes"] for turn in found["kept"]] == [1, 1, 1, 0, 0]
    for turn in (found["kept"][-1], again):
        assert {name: turn[name] for name in SAME} == {name: stock[-1][name] for name in SAME}
    [disk] = found["infos"][-1]["caches"][0]["tiers"]
    assert (disk["hits"], disk["failures"], disk["is_open"]) == (NUM_IMAGES, 0, False)
