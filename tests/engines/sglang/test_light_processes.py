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

ROOT = Path(__file__).parents[3]
GROUP = "sglang.srt.plugins"
HEAVY = {"torch", "numpy", "vitcache._native", "vitcache.cache", "vitcache.pipeline", "vitcache.keys"}

# Each program prints a line of JSON.
PROGRAMS = {
    # Only the plug-in: no module of SGLang is loaded, none is imported.
    "alone": """
from vitcache.adapters.sglang.plugin import register
register()
say(modules=sorted(sys.modules))
""",
    # As `run_detokenizer_process` does.
    "detokenizer": """
from sglang.srt.managers.detokenizer_manager import load_plugins
before = set(sys.modules)
load_plugins()
say(modules=sorted(set(sys.modules) - before))
""",
    # A scheduler that imports the modules after the plug-ins were loaded.
    "scheduler": """
from sglang.srt.plugins import load_plugins
before = set(sys.modules)
load_plugins()
modules = sorted(set(sys.modules) - before)
from vitcache.adapters.sglang.targets import TARGETS
loaded = [target.module for target in TARGETS if target.module in sys.modules]
from sglang.srt.managers import mm_utils, scheduler
from sglang.srt.managers.scheduler_components import weight_updater
try:
    scheduler.Scheduler()
except TypeError as error:
    reached = str(error)
wrapped = hasattr(mm_utils.embed_mm_inputs, "__wrapped__")
say(modules=modules, loaded=loaded, reached=reached, wrapped=wrapped, later=sorted(sys.modules))
""",
}
PREFIX = """
import json, sys
def say(**found): print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The lines of the programs, which run at the same time with the plug-in as pip installs it."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "vitcache").symlink_to(Path(vitcache.__file__).resolve().parent)
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    package = folder / "vitcache_points-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: vitcache-points\nVersion: 1\n")
    lines = [f"[{GROUP}]", *(f"{name} = {value}" for name, value in points.items())]
    (package / "entry_points.txt").write_text("\n".join(lines))
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
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        [line] = [line for line in output.splitlines() if line.startswith("FOUND")]
        results[name] = json.loads(line.removeprefix("FOUND"))
    return results


def heavy(modules: list[str]) -> list[str]:
    return sorted(HEAVY & set(modules))


def test_plugin_alone_imports_neither_torch_nor_sglang_nor_the_cache(found: dict[str, Any]) -> None:
    modules = found["alone"]["modules"]
    assert "vitcache.adapters.sglang.plugin" in modules
    assert not heavy(modules)
    assert not [name for name in modules if name.startswith("sglang")]


def test_detokenizer_imports_only_light_modules_for_the_plugin(found: dict[str, Any]) -> None:
    modules = found["detokenizer"]["modules"]
    assert "vitcache.adapters.sglang.plugin" in modules
    assert not heavy(modules)
    assert not [name for name in modules if name.startswith("sglang")]


def test_loading_plugins_first_imports_no_module_of_a_target(found: dict[str, Any]) -> None:
    assert not heavy(found["scheduler"]["modules"])
    assert found["scheduler"]["loaded"] == []


def test_modules_that_are_imported_later_get_their_hooks(found: dict[str, Any]) -> None:
    assert found["scheduler"]["wrapped"]
    # The checks let SGLang's own `__init__` run.
    assert "server_args" in found["scheduler"]["reached"]
    assert "vitcache.adapters.sglang.service" not in found["scheduler"]["later"]
