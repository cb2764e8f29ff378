"""`register`: hooks every target once, in modules that are loaded and in modules that are loaded later."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sglang_fakes.modules import importable, write

from vitcache.adapters.sglang.plugin import register
from vitcache.adapters.sglang.start_up import HOOKED

ROOT = Path(__file__).parents[3]
SCHEDULER = "sglang.srt.managers.scheduler"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    write(tmp_path)
    with importable(tmp_path):
        yield tmp_path


def apply() -> None:
    importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()


def num_wrappers(function: Any) -> int:
    count = 0
    while hasattr(function, "__wrapped__"):
        function, count = function.__wrapped__, count + 1
    return count


def wrappers() -> set[int]:
    return {num_wrappers(target.find()) for target in HOOKED}


def test_register_hooks_loaded_modules(folder: Path) -> None:
    importlib.import_module(SCHEDULER)
    register()
    apply()
    assert wrappers() == {1}


def test_register_hooks_modules_that_are_imported_later(folder: Path) -> None:
    register()
    apply()
    assert not {target.module for target in HOOKED} & set(sys.modules)
    importlib.import_module(SCHEDULER)
    assert wrappers() == {1}


def test_module_between_is_hooked_also_in_modules_that_import_its_names(folder: Path) -> None:
    importlib.import_module("sglang.srt.managers.mm_utils")
    register()
    apply()
    importlib.import_module(SCHEDULER)
    assert wrappers() == {1}


@pytest.mark.parametrize("is_first", [True, False])
def test_hook_of_another_plug_in_that_imports_the_module_is_applied_once(
    folder: Path, is_first: bool
) -> None:
    registry = importlib.import_module("sglang.srt.plugins.hook_registry")
    calls = []

    def other(original: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(*args, **kwargs)

    path = "sglang.srt.managers.mm_utils.embed_mm_inputs"
    if is_first:
        registry.HookRegistry.register(path, other, registry.HookType.AROUND)
    register()
    if not is_first:
        registry.HookRegistry.register(path, other, registry.HookType.AROUND)
    apply()
    [target] = [target for target in HOOKED if target.path == path]
    assert num_wrappers(target.find()) == 2
    assert target.find()(None, [], [], None, None) == "stock"
    assert len(calls) == 1
    importlib.import_module(SCHEDULER)
    apply()
    assert {target.path: num_wrappers(target.find()) for target in HOOKED} == {
        target.path: 2 if target.path == path else 1 for target in HOOKED
    }


def test_hooks_that_are_registered_later_name_the_plug_in(folder: Path) -> None:
    registry = importlib.import_module("sglang.srt.plugins.hook_registry")
    token = registry.plug_in.set("vitcache")
    register()
    registry.plug_in.reset(token)
    apply()
    importlib.import_module(SCHEDULER)
    hooks = registry.HookRegistry._hooks
    assert {source for target in HOOKED for *_, source in hooks[target.path]} == {"vitcache"}


def test_second_register_changes_nothing(folder: Path) -> None:
    for _ in range(2):
        register()
        apply()
    importlib.import_module(SCHEDULER)
    register()
    apply()
    assert wrappers() == {1}


def test_register_imports_no_module_of_sglang_but_the_registry(folder: Path) -> None:
    before = set(sys.modules)
    register()
    assert {name for name in set(sys.modules) - before if name.startswith("sglang")} == set()


def test_unknown_module_of_sglang_does_not_hinder_register(folder: Path) -> None:
    (folder / "sglang/srt/managers/mm_schedule.py").unlink()
    register()
    apply()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("sglang.srt.managers.mm_schedule")


def test_plugin_and_targets_import_neither_torch_nor_numpy(folder: Path) -> None:
    """In a new process, also after the modules of SGLang were hooked."""
    code = """
        import json, sys
        import vitcache.adapters.sglang
        vitcache.adapters.sglang.register()
        from sglang.srt.plugins.hook_registry import HookRegistry
        HookRegistry.apply_hooks()
        import sglang.srt.managers.scheduler
        print(json.dumps([name for name in ("torch", "numpy", "vitcache.cache") if name in sys.modules]))
    """
    path = os.pathsep.join([str(folder), str(ROOT)])
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(found.stdout) == []


def test_package_lists_its_public_names() -> None:
    package: ModuleType = importlib.import_module("vitcache.adapters.sglang")
    assert sorted(package.__all__) == ["SglangStats", "register", "stats"]
    assert package.register is register
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = package.other
