"""The cache that a scheduler makes when it starts, and the first step that uses it."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.model import HIDDEN, Model
from sglang_fakes.requests import Inputs, image
from sglang_fakes.scene import Scene, Window

from vitcache.adapters.sglang import model_memory, service, start_up
from vitcache.adapters.sglang.early_cache import expected_shape
from vitcache.adapters.sglang.model_cache import StepShape
from vitcache.adapters.sglang.options import VARIABLE

ATTENTION = "sglang.srt.layers.dp_attention"
SHAPE = StepShape(HIDDEN, 0, torch.float32, torch.device("cpu"))


class Loaded(Model):
    """A model as the worker of a scheduler has it. `is_first`: the pipeline rank that embeds."""

    def __init__(self, levels: int = 0, is_first: bool = True) -> None:
        super().__init__(levels)
        self.pp_group = SimpleNamespace(is_first_rank=is_first)

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])


def scheduler(model: Any, **config: Any) -> Any:
    values = {"is_multimodal": True, "hidden_size": HIDDEN, "dtype": torch.float32} | config
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
    return SimpleNamespace(model_config=SimpleNamespace(**values), tp_worker=worker)


def runs_here(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    module: Any = ModuleType(ATTENTION)
    module.multimodal_encoder_runs_here = lambda: answer
    monkeypatch.setitem(sys.modules, ATTENTION, module)


@pytest.mark.parametrize("levels", [0, 3])
def test_shape_of_a_scheduler_is_that_of_its_first_step(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_here(monkeypatch, True)
    found = expected_shape(scheduler(Loaded(levels)))
    assert found == StepShape(HIDDEN, levels, torch.float32, torch.device("cpu"))


WITHOUT = {
    "no encoder": scheduler(torch.nn.Linear(1, 1)),
    "a later pipeline rank": scheduler(Loaded(is_first=False)),
    "no width": scheduler(Loaded(), hidden_size=None),
    "no dtype": scheduler(Loaded(), dtype="auto"),
    "no parameters": scheduler(SimpleNamespace(get_image_feature=None, parameters=lambda: iter(()))),
    "another device": scheduler(torch.nn.Linear(1, 1, device="meta")),
    "no configuration": SimpleNamespace(),
}


@pytest.mark.parametrize("without", WITHOUT.values(), ids=WITHOUT)
def test_scheduler_whose_steps_are_not_known_has_no_early_cache(without: Any) -> None:
    assert expected_shape(without) is None


def test_instance_without_encoders_has_no_early_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that decodes, or one that has an encoder server."""
    runs_here(monkeypatch, False)
    assert expected_shape(scheduler(Loaded())) is None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The caches that were made, in order."""
    caches: list[Any] = []
    make = model_memory.make_cache

    def record(*arguments: Any) -> Any:
        caches.append(make(*arguments))
        return caches[-1]

    monkeypatch.setattr(model_memory, "make_cache", record)
    return caches


def first_step(scene: Scene) -> None:
    scene.step(Window(Inputs([image(1, (1, 3))]), 0, 6))


def test_first_step_uses_the_cache_of_the_start(monkeypatch: pytest.MonkeyPatch, made: list[Any]) -> None:
    scene = Scene(monkeypatch, device_bytes=4096)
    scene.service.make_early(scene.model, SHAPE)
    assert len(made) == 1
    first_step(scene)
    assert len(made) == 1
    assert len(made[0]) == 1


def test_cache_of_another_shape_is_closed_before_the_right_one_is_made(
    monkeypatch: pytest.MonkeyPatch, made: list[Any]
) -> None:
    scene = Scene(monkeypatch, Model(levels=2), device_bytes=4096)
    scene.service.make_early(scene.model, SHAPE)
    first_step(scene)
    assert len(made) == 2
    assert made[1].row_width == 3 * HIDDEN
    with pytest.raises(RuntimeError, match="closed"):
        made[0].stats()


def test_early_cache_is_closed_if_sglang_makes_its_own_cache_again(
    monkeypatch: pytest.MonkeyPatch, made: list[Any]
) -> None:
    scene = Scene(monkeypatch, device_bytes=4096)
    scene.service.make_early(scene.model, SHAPE)
    service.STOCK_CACHE.make(lambda size: None, 123)
    first_step(scene)
    assert len(made) == 2
    with pytest.raises(RuntimeError, match="closed"):
        made[0].stats()


def test_cache_of_a_start_behind_sglangs_own_is_kept_for_the_first_step(
    monkeypatch: pytest.MonkeyPatch, made: list[Any]
) -> None:
    """Also if the process has read the counts before, which made the service."""
    scene = Scene(monkeypatch, device_bytes=4096)
    service.STOCK_CACHE.make(lambda size: None, 123)
    scene.service.make_early(scene.model, SHAPE)
    first_step(scene)
    assert len(made) == 1
    assert len(made[0]) == 1


def test_later_scheduler_of_a_process_replaces_the_caches_of_the_first_one(
    monkeypatch: pytest.MonkeyPatch, made: list[Any]
) -> None:
    scene = Scene(monkeypatch, device_bytes=4096)
    scene.service.make_early(scene.model, SHAPE)
    first_step(scene)
    scene.service.make_early(scene.model, SHAPE)  # a scheduler that ended before its first step
    monkeypatch.setenv(VARIABLE, '{"device_bytes": 8192}')
    service.STOCK_CACHE.make(lambda size: None, 123)
    scene.service.make_early(scene.model, SHAPE)
    for cache in made[:2]:
        with pytest.raises(RuntimeError, match="closed"):
            cache.stats()
    first_step(scene)
    assert len(made) == 3
    assert [cache.device_capacity_bytes for cache in scene.service.stats().caches] == [8192]


def start(monkeypatch: pytest.MonkeyPatch, scene: Scene, made_by: Any) -> Any:
    monkeypatch.setattr(start_up, "check_start_up", lambda: None)
    monkeypatch.setattr(service, "SERVICE", scene.service)
    return start_up.around_set_up(lambda scheduler: None, made_by)


def test_scheduler_makes_the_cache_when_it_starts(monkeypatch: pytest.MonkeyPatch, made: list[Any]) -> None:
    start(monkeypatch, Scene(monkeypatch, device_bytes=4096), scheduler(Loaded()))
    assert len(made) == 1


@pytest.mark.parametrize("is_multimodal", [True, False])
def test_scheduler_without_vitcache_or_without_media_makes_none(
    monkeypatch: pytest.MonkeyPatch, made: list[Any], is_multimodal: bool
) -> None:
    scene = Scene(monkeypatch, device_bytes=4096)
    if is_multimodal:
        monkeypatch.setenv("VITCACHE_DISABLE", "1")
    start(monkeypatch, scene, scheduler(Loaded(), is_multimodal=is_multimodal))
    assert made == []


def test_tier_that_does_not_fit_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And not the engine, in the first step with an image."""
    scene = Scene(monkeypatch, device_bytes=1 << 60)
    caplog.set_level(logging.INFO)
    with pytest.raises(MemoryError, match="device_bytes: cannot allocate"):
        start(monkeypatch, scene, scheduler(Loaded()))
