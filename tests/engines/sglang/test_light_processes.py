"""A process of SGLang that never embeds imports nothing heavy for the plug-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import vitcache
from vitcache.bench.sglang.plug_ins import GROUP, write_package

ROOT = Path(__file__).parents[3]
LIMIT_S = 300
# The parts of vitcache that the plug-in imports before the first image.
LIGHT = {"_version", "adapters", "device", "lazy"}

# Each program prints a line of JSON.
PREFIX = """
import json, sys
def say(**found): print("FOUND" + json.dumps(found))
def added(): return sorted(set(sys.modules) - before)
before = set(sys.modules)
"""
PROGRAMS = {
    # Only the plug-in: no module of SGLang is loaded, and none is imported.
    "alone": """
from vitcache.adapters.sglang.plugin import register
register()
say(modules=added())
""",
    # The modules of SGLang are imported after the plug-ins were loaded, and then before.
    "engine": """
from sglang.srt.plugins import HookRegistry, load_plugins
before |= set(sys.modules)
load_plugins()
first = added()

from sglang.srt.managers import detokenizer_manager, mm_utils
detokenizer = [name for name in added() if name.startswith("vitcache")]
late = hasattr(mm_utils.embed_mm_inputs, "__wrapped__")

from sglang.srt.managers import scheduler
from sglang.srt.managers.scheduler_components import weight_updater
from vitcache.adapters.sglang.plugin import register
HookRegistry.reset()
before |= set(sys.modules)
register()
HookRegistry.apply_hooks()
again = added()
try:
    scheduler.Scheduler()
except TypeError as error:
    reached = str(error)
embeds = "vitcache.adapters.sglang.service" in sys.modules
say(first=first, detokenizer=detokenizer, late=late, again=again, reached=reached, embeds=embeds)
""",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The lines of the programs, which run at the same time with the plug-in as pip installs it."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "vitcache").symlink_to(Path(vitcache.__file__).resolve().parent)
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    write_package(folder, "vitcache_points", points)
    environment = {**os.environ, "PYTHONPATH": str(folder), "SGLANG_PLUGINS": "vitcache"}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", PREFIX + program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, program in PROGRAMS.items()
    }
    results = {}
    for name, process in started.items():
        output, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, errors
        [line] = [line for line in output.splitlines() if line.startswith("FOUND")]
        results[name] = json.loads(line.removeprefix("FOUND"))
    return results


def heavy(modules: list[str]) -> list[str]:
    """The modules of other packages than Python's, and those of vitcache that are not light."""
    return [
        name
        for name in modules
        if name.split(".")[0] in ("torch", "numpy", "sglang")
        or (name.startswith("vitcache.") and name.split(".")[1] not in LIGHT)
    ]


def test_plugin_alone_imports_neither_torch_nor_sglang_nor_the_cache(found: dict[str, Any]) -> None:
    modules = found["alone"]["modules"]
    assert "vitcache.adapters.sglang.plugin" in modules
    assert not heavy(modules)


def test_loading_the_plugin_imports_no_module_of_sglang(found: dict[str, Any]) -> None:
    assert "vitcache.adapters.sglang.plugin" in found["engine"]["first"]
    assert not heavy(found["engine"]["first"])


def test_process_of_the_detokenizer_has_only_light_modules_of_vitcache(found: dict[str, Any]) -> None:
    assert "vitcache.adapters.sglang.hooks" in found["engine"]["detokenizer"]
    assert not heavy(found["engine"]["detokenizer"])


def test_hooking_modules_that_are_loaded_imports_nothing(found: dict[str, Any]) -> None:
    assert found["engine"]["again"] == []


def test_modules_that_are_imported_later_get_their_hooks(found: dict[str, Any]) -> None:
    assert found["engine"]["late"]
    # The checks let SGLang's own `__init__` run.
    assert "server_args" in found["engine"]["reached"]
    assert not found["engine"]["embeds"]
