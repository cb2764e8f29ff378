"""The placed architectures in vLLM's registry: names, interfaces, and the model states that vLLM chooses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_runner.small_models import SmallModel
from engine_runner.states import States
from vllm import ModelRegistry
from vllm.config import ModelConfig
from vllm.model_executor.models import registry
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridModelState

from vitcache.adapters.vllm import placed_models, plugin
from vitcache.adapters.vllm.architectures import ARCHITECTURES, MODELS, register_models
from vitcache.adapters.vllm.model_state import VitCacheModelState
from vitcache.adapters.vllm.placed_models import PlacesRows

Make = Callable[..., States]
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


class Placed(PlacesRows, SmallModel):
    pass


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """vLLM's registry with its own classes alone."""
    own = {
        name: registry._LazyRegisteredModel(f"{MODELS}.{module}", of_vllm)
        for name, (module, of_vllm) in registry._VLLM_MODELS.items()
    }
    monkeypatch.setattr(ModelRegistry, "models", own)
    return own


def test_register_replaces_the_placed_architectures_alone(models: dict[str, Any]) -> None:
    before = dict(models)
    plugin.register()
    after = dict(models)
    plugin.register()
    assert models == after
    changed = {name for name in after if after[name] != before[name]}
    assert changed == set(ARCHITECTURES)
    places = {name: (after[name].module_name, after[name].class_name) for name in changed}
    version = plugin.vllm_version()
    assert places == {name: (placed_models.__name__, f"{name}@{version}") for name in ARCHITECTURES}


def test_interfaces_that_vllm_keeps_in_a_file_are_of_one_version(models: dict[str, Any]) -> None:
    name = next(iter(ARCHITECTURES))
    own, files = models[name], set()
    for version in ("0.33.0", "0.34.0"):
        models[name] = own
        register_models(version)
        files.add(models[name]._get_cache_filename())
    assert len(files) == 2


def test_register_while_vitcache_is_disabled_registers_no_model(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(models)
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    plugin.register()
    assert models == before


@pytest.mark.parametrize("model", [SmallModel, "another.plugin:Model"], ids=["class", "lazy"])
def test_register_keeps_the_class_of_another_plugin(models: dict[str, Any], model: Any) -> None:
    name = next(iter(ARCHITECTURES))
    ModelRegistry.register_model(name, model)
    registered = models[name]
    plugin.register()
    assert models[name] == registered


@every_architecture
def test_placed_class_is_vllms_with_its_name_and_interfaces(models: dict[str, Any], name: str) -> None:
    stock = models[name].load_model_cls()
    plugin.register()
    placed = models[name].load_model_cls()
    assert placed is models[name].load_model_cls()
    assert placed is not stock
    assert issubclass(placed, stock)
    assert (placed.__name__, placed.__doc__) == (stock.__name__, stock.__doc__)
    assert pickle.loads(pickle.dumps(placed)) is placed
    assert registry._ModelInfo.from_model_cls(placed) == registry._ModelInfo.from_model_cls(stock)


@every_architecture
def test_placed_class_without_a_connector_names_no_model_state(models: dict[str, Any], name: str) -> None:
    plugin.register()
    placed = models[name].load_model_cls()
    assert not hasattr(placed.__new__(placed), "get_model_state_cls")


def test_class_that_is_not_placed_is_missing_from_the_module() -> None:
    with pytest.raises(AttributeError, match="'Unknown'"):
        placed_models.Unknown  # noqa: B018


def test_model_without_a_connector_gets_the_state_of_vllm(make_states: Make) -> None:
    states = make_states(model=SmallModel)
    states.close()
    model = type(states.ours.model)
    assert issubclass(model, PlacesRows)
    assert resolve_model_state_cls(states.config, states.ours.model) is DefaultModelState


def test_model_with_a_connector_gets_the_state_of_vitcache(make_states: Make) -> None:
    states = make_states(model=SmallModel)
    assert resolve_model_state_cls(states.config, states.ours.model) is VitCacheModelState


def test_worker_without_an_encoder_starts_and_forgets_requests(make_states: Make) -> None:
    states = make_states(model=SmallModel)
    later_stage = states.make_state(None)
    assert isinstance(later_stage, VitCacheModelState)
    assert not later_stage.supports_mm_inputs
    later_stage.remove_request("unknown")


@pytest.mark.parametrize("option", [{"place_rows": False}, {"is_placed": False}], ids=str)
def test_model_that_is_not_placed_gets_the_state_of_vllm(make_states: Make, option: dict[str, bool]) -> None:
    states = make_states(model=SmallModel, **option)
    assert resolve_model_state_cls(states.config, states.ours.model) is DefaultModelState


def test_model_with_another_state_of_vllm_keeps_it(
    make_states: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = make_states(model=SmallModel)
    monkeypatch.setattr(ModelConfig, "is_hybrid", True)
    assert resolve_model_state_cls(states.config, states.ours.model) is MambaHybridModelState


def test_missing_attribute_of_vllm_is_not_taken_for_a_model_without_a_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(model: Any) -> None:
        raise AttributeError("resolve_model_state_cls is missing")

    monkeypatch.setattr(placed_models, "_find_state", fail)
    with pytest.raises(RuntimeError, match="resolve_model_state_cls is missing"):
        hasattr(placed_models.PlacesRows(), "get_model_state_cls")
