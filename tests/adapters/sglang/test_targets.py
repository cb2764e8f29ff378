"""`check_targets` and `check_start_up`: a scheduler does not start if a hook would not be called."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sglang_fakes.modules import SOURCES, importable, write

from vitcache.adapters.sglang import start_up
from vitcache.adapters.sglang.options import VARIABLE
from vitcache.adapters.sglang.plugin import register
from vitcache.adapters.sglang.start_up import ANY_VERSION, TESTED_VERSIONS, check_start_up, check_version
from vitcache.adapters.sglang.targets import TARGETS, check_targets

SCHEDULER = "sglang.srt.managers.scheduler"
MM_UTILS = "srt/managers/mm_utils"
Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, ANY_VERSION, "VITCACHE_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(start_up, "version", lambda _: TESTED_VERSIONS[0])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Registers the hooks, imports the scheduler, and returns its module. Modules can have another text."""

    def load(**changed: str) -> Any:
        write(tmp_path, {MM_UTILS if name == "mm_utils" else name: text for name, text in changed.items()})
        register()
        importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()
        return importlib.import_module(SCHEDULER)

    with importable(tmp_path):
        yield load


def test_scheduler_with_all_hooks_starts(start: Start) -> None:
    module = start()
    check_targets()
    assert module.Scheduler().is_idle


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_function_without_its_hook_is_refused_by_name(start: Start, target: Any) -> None:
    module = start()
    owner, _, name = target.path.rpartition(".")
    setattr(pkgutil.resolve_name(owner), name, target.find().__wrapped__)
    with pytest.raises(RuntimeError, match=rf"{target.name}.*does not call the hook"):
        module.Scheduler()


def test_missing_function_is_refused_by_name(start: Start) -> None:
    text = SOURCES[MM_UTILS].replace("def embed_mm_inputs", "def embed_inputs")
    with pytest.raises(RuntimeError, match=r"mm_utils\.embed_mm_inputs is missing"):
        start(mm_utils=text).Scheduler()


def test_renamed_parameter_is_refused_by_name(start: Start) -> None:
    text = SOURCES[MM_UTILS].replace("extend_prefix_lens, extend_seq_lens", "prefixes, extend_seq_lens")
    with pytest.raises(RuntimeError, match=r"embed_mm_inputs has the parameters .*prefixes"):
        start(mm_utils=text).Scheduler()


def test_further_parameter_is_accepted(start: Start) -> None:
    text = SOURCES[MM_UTILS].replace("use_deepstack={}", "use_deepstack={}, further=None")
    assert start(mm_utils=text).Scheduler().is_idle


def test_module_that_is_not_loaded_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with importable(tmp_path), pytest.raises(RuntimeError, match="mm_utils is not loaded"):
        check_targets()


def test_hook_below_a_wrapper_of_another_plugin_is_found(start: Start) -> None:
    module = start()
    utils = importlib.import_module("sglang.srt.managers.mm_utils")
    registry = importlib.import_module("sglang.srt.plugins.hook_registry")
    utils.embed_mm_inputs = registry._around(utils.embed_mm_inputs, lambda original, *args: original(*args))
    assert module.Scheduler().is_idle


def test_disabled_scheduler_starts_without_any_check(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    module = start()
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    monkeypatch.setenv(VARIABLE, "{")
    monkeypatch.setattr(start_up, "version", lambda _: "0.1")
    assert module.Scheduler().is_idle


@pytest.mark.parametrize(
    ("text", "error"), [("{", ValueError), ('{"sizes": 1}', ValueError), ('{"host_bytes": 1.5}', TypeError)]
)
def test_wrong_options_stop_the_scheduler(
    start: Start, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception]
) -> None:
    module = start()
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(error, match=VARIABLE):
        module.Scheduler()


def test_untested_version_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_up, "version", lambda _: "0.5.24")
    with pytest.raises(RuntimeError, match=rf"0\.5\.24.*{TESTED_VERSIONS[0]}.*{ANY_VERSION}"):
        check_start_up()


def test_any_version_is_accepted_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(start_up, "version", lambda _: "0.5.24")
    monkeypatch.setenv(ANY_VERSION, "1")
    with caplog.at_level(logging.WARNING, "vitcache.adapters.sglang"):
        check_version()
    assert ["0.5.24" in record.getMessage() for record in caplog.records] == [True]


def test_tested_version_with_a_local_part_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_up, "version", lambda _: f"{TESTED_VERSIONS[0]}+cpu")
    check_version()


@pytest.mark.parametrize("value", ["", "0", "true", "yes"])
def test_variable_of_another_value_accepts_no_version(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(start_up, "version", lambda _: "0.5.24")
    monkeypatch.setenv(ANY_VERSION, value)
    with pytest.raises(RuntimeError, match=ANY_VERSION):
        check_version()


def test_missing_metadata_of_sglang_is_an_untested_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise start_up.PackageNotFoundError(name)

    monkeypatch.setattr(start_up, "version", missing)
    with pytest.raises(RuntimeError, match="unknown version"):
        check_version()
