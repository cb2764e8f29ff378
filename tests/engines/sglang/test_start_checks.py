"""A scheduler whose hooks are not in place does not start, and its error names the target."""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_schedule, mm_utils
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang_scene.plugin import bindings, owner_of, plugged

from vitcache.adapters.sglang import register, start_up
from vitcache.adapters.sglang.options import VARIABLE
from vitcache.adapters.sglang.start_up import HOOKED, SET_UP

CHECKED = [target for target in HOOKED if target is not SET_UP]


@pytest.fixture(autouse=True)
def hooks() -> Iterator[None]:
    with plugged():
        yield


def start() -> None:
    """Make a scheduler as SGLang does, without the arguments that its own `__init__` needs."""
    Scheduler()  # type: ignore[call-arg]


def starts() -> bool:
    """Whether the checks let SGLang's own `__init__` run, which misses its arguments."""
    with pytest.raises(TypeError, match="server_args"):
        start()
    return True


def set_target(monkeypatch: pytest.MonkeyPatch, target: Any, value: Any) -> None:
    monkeypatch.setattr(owner_of(target), target.name.split(".")[-1], value)


def test_scheduler_starts_with_every_hook_in_place() -> None:
    assert {target.name.split(".")[-1] for target in HOOKED} == {binding.name for binding in bindings()}
    assert starts()


@pytest.mark.parametrize("target", CHECKED, ids=lambda target: target.name)
def test_target_without_its_hook_ends_the_scheduler(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_target(monkeypatch, target, target.find().__wrapped__)
    with pytest.raises(RuntimeError, match=rf"{target.path} does not call the hook"):
        start()


@pytest.mark.parametrize("target", CHECKED, ids=lambda target: target.name)
def test_renamed_target_ends_the_scheduler(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(owner_of(target), target.name.split(".")[-1])
    with pytest.raises(RuntimeError, match=rf"{target.path} is missing"):
        start()


@pytest.mark.parametrize("target", CHECKED, ids=lambda target: target.name)
def test_target_that_another_plugin_replaced_ends_the_scheduler(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(target.find().__wrapped__)
    def theirs(*arguments: Any, **named: Any) -> None:
        raise AssertionError("not called")

    set_target(monkeypatch, target, theirs)
    with pytest.raises(RuntimeError, match=rf"{target.path} does not call the hook"):
        start()


def test_target_with_other_parameters_ends_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    def embed_mm_inputs(input_ids: Any, mm_inputs_list: Any) -> None:
        raise AssertionError("not called")

    target = next(target for target in CHECKED if target.name == "embed_mm_inputs")
    set_target(monkeypatch, target, embed_mm_inputs)
    with pytest.raises(RuntimeError, match=r"has the parameters .*input_ids.*mm_inputs_list"):
        start()


def test_registry_that_applies_nothing_ends_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in CHECKED:
        set_target(monkeypatch, target, target.find().__wrapped__)
    with pytest.raises(RuntimeError, match=r"prepare_mm_inputs does not call the hook"):
        start()


def test_plugin_that_wraps_the_hooked_target_is_accepted_and_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def around(original: Any, *arguments: Any, **named: Any) -> Any:
        calls.append("around")
        return original(*arguments, **named)

    target = "sglang.srt.managers.mm_utils.embed_mm_inputs"
    monkeypatch.setattr(HookRegistry, "_hooks", defaultdict(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    hooked = mm_utils.embed_mm_inputs
    HookRegistry.register(target, around, HookType.AROUND)
    try:
        HookRegistry.apply_hooks()
        assert starts()
        with torch.no_grad():
            mm_utils.embed_mm_inputs([], [], [], torch.arange(2), torch.nn.Embedding(4, 8))
    finally:
        mm_utils.embed_mm_inputs = hooked
    assert calls == ["around"]


def test_version_that_was_not_tested_ends_the_scheduler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(start_up, "version", lambda name: {"sglang": "0.9.9"}[name])
    with pytest.raises(RuntimeError, match=r"SGLang is 0\.9\.9.*0\.5\.23.*VITCACHE_SGLANG_ANY_VERSION=1"):
        start()
    monkeypatch.setenv("VITCACHE_SGLANG_ANY_VERSION", "1")
    assert starts()
    assert any("0.9.9" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ('{"devise_bytes": 1}', ValueError),
        ('{"device_bytes": -1}', ValueError),
        ('{"device_bytes": 0}', ValueError),
        ('{"max_rows_per_encode": 1.5}', TypeError),
        ('{"trust_engine_hash": 1}', TypeError),
        ("[]", TypeError),
        ("{", ValueError),
    ],
)
def test_wrong_option_ends_the_scheduler_and_the_error_names_the_variable(
    options: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, options)
    with pytest.raises(error, match=VARIABLE):
        start()


def test_disabled_plugin_checks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    monkeypatch.setenv(VARIABLE, "{")
    monkeypatch.setattr(start_up, "version", lambda name: "0.9.9")
    assert starts()


def test_second_registration_changes_nothing() -> None:
    register()
    HookRegistry.apply_hooks()
    before = {target.path: target.find() for target in HOOKED}
    register()
    HookRegistry.apply_hooks()
    HookRegistry.reset()
    assert {target.path: target.find() for target in HOOKED} == before


def test_scheduler_without_the_checking_hook_is_refused_when_it_makes_its_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_target(monkeypatch, SET_UP, SET_UP.find().__wrapped__)
    assert starts()  # SGLang's own function, which checks nothing
    with pytest.raises(RuntimeError, match=rf"{SET_UP.path} does not call the hook"):
        mm_schedule.init_mm_embedding_cache(1 << 20)


def test_released_sglang_has_the_names_that_vitcache_reads_if_they_exist() -> None:
    """Without one of them, vitcache would go on: a later cache, a smaller call, a feature read too early."""
    from sglang.srt import runtime_context
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.layers.dp_attention import multimodal_encoder_runs_here
    from sglang.srt.server_args import ServerArgs

    assert callable(multimodal_encoder_runs_here)
    assert callable(runtime_context.get_mm)
    assert hasattr(mm_utils, "_GPU_FEATURE_BUFFER")
    assert "mm_enable_dp_encoder" in ServerArgs.__struct_fields__
    assert hasattr(runtime_context.get_parallel(), "attn_tp_size")
    source = inspect.getsource(ModelConfig)
    assert all(f"self.{name}" in source for name in ("hidden_size", "dtype", "is_multimodal"))
