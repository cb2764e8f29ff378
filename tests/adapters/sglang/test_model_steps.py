"""`ModelSteps` and `Arrivals` over a disk: which cache fetches, and which ones are closed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.model import HIDDEN, Model
from sglang_fakes.requests import Inputs, image
from sglang_fakes.scene import Scene, Window

from vitcache.adapters.sglang import arrivals
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.model_cache import StepShape

DISK = {"device_bytes": 4096, "host_bytes": 1 << 16, "disk_bytes": 4 << 20, "weights_name": "v1"}
FLAT = StepShape(HIDDEN, 0, torch.float32, torch.device("cpu"))
DEEP = StepShape(HIDDEN, 2, torch.float32, torch.device("cpu"))


class Disk(Scene):
    """A scene with a folder, and a scheduler of its model whose prefix cache is empty."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, model: Model | None = None) -> None:
        super().__init__(monkeypatch, model, disk=str(folder), **DISK)
        monkeypatch.setattr(arrivals, "uncached_tokens", lambda scheduler, request: (0, request.num_tokens))
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=self.model))
        self.scheduler = SimpleNamespace(tp_worker=worker, waiting_queue=[])

    def enter(self, inputs: Inputs | None, num_tokens: int = 8) -> Any:
        request = SimpleNamespace(multimodal_inputs=inputs, num_tokens=num_tokens)
        self.scheduler.waiting_queue.append(request)
        self.service.arrivals.fetch(self.scheduler, request)
        return request

    @property
    def num_held(self) -> int:
        return len(self.service.arrivals.held)

    def take_all(self) -> None:
        """Choose until no request is held any more."""
        while self.num_held:
            with self.service.arrivals.held.choice(self.scheduler):
                pass
            self.service.arrivals.held.pause()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Disk:
    return Disk(monkeypatch, tmp_path)


def inputs(seed: int = 1) -> Inputs:
    return Inputs([image(seed, (1, 4))])


def test_first_request_is_fetched_with_the_memory_of_the_start(scene: Disk) -> None:
    scene.service.make_early(scene.model, FLAT)
    [early] = scene.service.models.caches
    made = inputs()
    scene.enter(made)
    assert scene.num_held == 1
    scene.take_all()
    assert scene.service.models.caches == [early]
    scene.step(Window(made, 0, 8))
    assert scene.service.models.caches == [early]
    assert early.stats().tiers[0].misses == 1


def test_request_before_the_shape_is_known_is_not_fetched(scene: Disk) -> None:
    scene.enter(inputs())
    assert (scene.num_held, scene.service.models.caches) == (0, [])
    scene.step(Window(inputs(), 0, 8))
    scene.enter(inputs(2))
    assert scene.num_held == 1


def test_first_step_of_another_shape_replaces_the_memory_of_the_fetch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two caches would need twice the memory, and a folder with two tiers of one process."""
    scene = Disk(monkeypatch, tmp_path, Model(levels=2))
    scene.service.make_early(scene.model, FLAT)
    made = inputs()
    scene.enter(made)
    [early] = scene.service.models.caches
    scene.step(Window(made, 0, 8))
    [cache] = scene.service.models.caches
    assert cache is not early
    assert cache.row_width == HIDDEN * 3
    with pytest.raises(RuntimeError, match="closed"):
        early.stats()
    scene.take_all()  # the fetch of the closed cache is over
    scene.enter(inputs(2))
    assert scene.num_held == 1


def test_step_whose_images_are_in_memory_holds_no_later_request(scene: Disk) -> None:
    made = inputs()
    scene.step(Window(made, 0, 8))
    scene.enter(made)  # a session has the same items again, and their keys are known
    assert scene.num_held == 0


@pytest.mark.parametrize("change", ["clear", "advance_epoch"])
def test_cache_of_the_start_loses_its_name_before_the_first_step(scene: Disk, change: str) -> None:
    scene.service.make_early(scene.model, FLAT)
    keep(scene, 1)
    getattr(scene.service, change)()
    assert not finds(scene, 1)
    keep(scene, 2)
    scene.service.close()
    LOADED.are_original = True  # as in a new process
    scene.service.make_early(scene.model, FLAT)
    assert [finds(scene, seed) for seed in (1, 2)] == [False, False]


@pytest.mark.parametrize("change", ["clear", "advance_epoch"])
def test_later_cache_of_changed_weights_has_another_name(scene: Disk, change: str) -> None:
    scene.service.make_early(scene.model, FLAT)
    keep(scene, 1)
    scene.service.make_early(scene.model, FLAT)
    assert finds(scene, 1)
    scene.service.close()
    getattr(scene.service, change)()  # no cache is there that it could tell
    scene.service.make_early(scene.model, FLAT)
    assert not finds(scene, 1)
    keep(scene, 2)
    scene.service.close()
    LOADED.are_original = True
    scene.service.make_early(scene.model, FLAT)
    assert not finds(scene, 2)


def test_requests_of_several_pipeline_stages_are_fetched_and_not_held(
    scene: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.service.make_early(scene.model, FLAT)
    monkeypatch.setattr(arrivals, "parallel_value", lambda name, default: 2)
    scene.enter(inputs())
    assert scene.num_held == 0


def test_requests_of_text_make_no_cache(scene: Disk) -> None:
    scene.service.make_early(scene.model, FLAT)
    for each in (None, Inputs([])):
        scene.enter(each)
    assert scene.num_held == 0


def keep(scene: Disk, seed: int) -> None:
    """Write a row to the disk."""
    [cache] = scene.service.models.caches
    before = cache.stats().tiers[0].stored
    assert cache.put(key_of(seed), torch.ones(1, HIDDEN))
    for _ in range(2):
        lease = cache.get(key_of(seed))
        assert lease is not None
        lease.release()
    assert cache.flush(60)
    assert cache.stats().tiers[0].stored == before + 1


def finds(scene: Disk, seed: int) -> bool:
    """Whether the disk has a row for the cache."""
    [cache] = scene.service.models.caches
    return cache.fetch([key_of(seed)], 1, timeout_s=60) == [True]


def key_of(seed: int) -> bytes:
    return bytes([seed]) * 32
