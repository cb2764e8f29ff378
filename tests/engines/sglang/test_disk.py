"""A disk below the host tier: a server that starts again finds the images of the time before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang_scene.language_model import HIDDEN
from sglang_scene.prompts import images
from sglang_scene.restarts import Server, serving
from sglang_scene.tower import Tower

from vitcache.adapters.sglang import model_cache, model_tiers, service, stats
from vitcache.adapters.sglang.options import Options
from vitcache.tiers.disk_tier import DiskTier
from vitcache.tiers.protocol import FetchOutcome, Tier, Transfer

NUM_IMAGES = 3
IMAGE_BYTES = 10 * HIDDEN * torch.bfloat16.itemsize
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
def serve(tmp_path: Path) -> Serve:
    return partial(serving, tmp_path / "disk")


@pytest.mark.parametrize("levels", [0, 2])
def test_server_that_starts_again_encodes_no_image_of_the_disk(serve: Serve, levels: int) -> None:
    with serve(Tower(levels)) as first:
        fill(first)
    with serve(Tower(levels)) as second:
        assert second.answer(images(NUM_IMAGES))
        assert second.tower.num_encodes == 0
        assert second.answer(images(NUM_IMAGES + 1))
        assert second.tower.num_encodes == 1
        assert (tier().hits, tier().misses) == (NUM_IMAGES, 1)
        assert stats().errors == 0


def test_other_weights_name_finds_nothing(serve: Serve) -> None:
    with serve() as first:
        fill(first)
    with serve(weights_name="v2") as other:
        assert other.answer(images(NUM_IMAGES))
        assert (other.tower.num_encodes, tier().hits, tier().misses) == (NUM_IMAGES, 0, NUM_IMAGES)
    with serve() as again:
        assert again.answer(images(NUM_IMAGES))
        assert again.tower.num_encodes == 0


def test_weights_without_a_name_are_found_in_one_process_only(serve: Serve) -> None:
    """The server's arguments have no revision."""
    for _ in range(2):
        with serve(weights_name=None, device_bytes=NUM_IMAGES * IMAGE_BYTES) as server:
            fill(server)
            server.keep()
            assert tier().stored == NUM_IMAGES


def test_tenants_find_only_their_own_images(serve: Serve) -> None:
    encodes = []
    for _ in range(2):
        with serve() as server:
            for salt in ("a", "a", "a", "b", "b", "b"):
                assert server.answer(images(1), salt=salt)
            encodes.append(server.tower.num_encodes)
    assert encodes == [2, 0]
    with serve() as server:
        [cache] = service.SERVICE.models.caches
        assert cache.forget_tenant("a") == 1
        for salt, encoded in (("b", 0), ("a", 1)):
            assert server.answer(images(1), salt=salt)
            assert server.tower.num_encodes == encoded


FAULTS: dict[str, Callable[[DiskTier], None]] = {
    "raises": lambda tier: raises(tier, "fetch"),
    "raises in exists": lambda tier: raises(tier, "exists"),
    "store raises": lambda tier: raises(tier, "store"),
    "misses": lambda tier: setattr(tier, "fetch", lambda fetches: [FetchOutcome.MISS] * len(fetches)),
    "damaged": lambda tier: setattr(tier, "fetch", lambda fetches: [FetchOutcome.DAMAGED] * len(fetches)),
    "half written": lambda tier: setattr(tier, "fetch", half_written),
}


def raises(tier: DiskTier, method: str) -> None:
    def call(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    setattr(tier, method, call)


def half_written(fetches: Sequence[Transfer]) -> list[FetchOutcome]:
    for fetch in fetches:
        for part in fetch.parts:
            part[: len(part) // 2] = 255
    return [FetchOutcome.UNSAFE] * len(fetches)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_disk_that_fails_costs_encodes_and_no_answer(
    serve: Serve, fault: Callable[[DiskTier], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as first:
        fill(first)
    make = model_tiers.make_tiers

    def make_faulty(options: Options) -> Sequence[Tier]:
        [tier] = make(options)
        assert isinstance(tier, DiskTier)
        fault(tier)
        return [tier]

    monkeypatch.setattr(model_cache, "make_tiers", make_faulty)
    with serve() as second:
        for count in (NUM_IMAGES, 1, NUM_IMAGES + 1):
            assert second.answer(images(count))
        assert second.tower.num_encodes in (1, NUM_IMAGES + 1)
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


@pytest.mark.full
@pytest.mark.engines("disk-renamed")
def test_engine_with_another_weights_name_encodes_all_images(result: Any) -> None:
    found = result("disk-renamed")
    [again] = found["renamed"]
    assert again["encodes"] == NUM_IMAGES
    assert {name: again[name] for name in SAME} == {name: found["kept"][-1][name] for name in SAME}


@pytest.mark.full
@pytest.mark.engines("disk-ranks")
def test_ranks_that_start_again_find_the_images_of_one_folder(result: Any) -> None:
    found = result("disk-ranks")
    assert [turn["encodes"] for turn in found["kept"]] == [1, 1, 1, 0, 0]
    again, new = found["restarted"]
    assert [turn["encodes"] for turn in (again, new)] == [0, 1]
    assert {name: again[name] for name in SAME} == {name: found["kept"][-1][name] for name in SAME}
    assert found["infos"][-1]["late"] == 0
