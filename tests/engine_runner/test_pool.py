"""The pool of engines: their order, limits and results, with small programs in place of engines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine_runner import cases, pool
from engine_runner.pool import Pool, environment
from sglang_runner import cases as sglang_cases

GIVES_A_RESULT = "import json, sys; open(sys.argv[-1], 'w').write(json.dumps(sys.argv[1:3]))"


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def engines(tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool whose models exist. `program` replaces the program of the engines."""
    made = Pool(sys.executable, tmp_path / "out", lines.append)
    monkeypatch.setattr(made, "model", lambda family: tmp_path / family)
    made._models = {"qwen3": tmp_path / "qwen3"}
    yield made
    made.stop()


def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Let the interpreter run this code in place of an engine."""
    package = tmp_path / "support" / "engine_runner"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "child.py").write_text(code)
    monkeypatch.setattr(pool, "SUPPORT", package.parent)


def test_engine_that_ends_well_has_a_result_and_runs_once(
    engines: Pool, lines: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(monkeypatch, tmp_path, GIVES_A_RESULT)
    outcome = engines.outcome("qwen3-whole-stock")
    assert (outcome.code, outcome.result) == (0, ["qwen3-whole-stock", str(tmp_path / "qwen3")])
    assert engines.outcome("qwen3-whole-stock") is outcome
    assert [line.split(" after")[0] for line in lines] == [
        "qwen3-whole-stock starts",
        "qwen3-whole-stock ended",
    ]


def test_engine_that_fails_has_its_output_and_exit_code(
    engines: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(monkeypatch, tmp_path, "raise SystemExit('no memory')")
    outcome = engines.outcome("qwen3-whole-stock")
    assert (outcome.code, outcome.result) == (1, {})
    assert outcome.tail() == "no memory\nengine qwen3-whole-stock: exit code 1"


def test_engine_that_hangs_is_ended_with_its_children(
    engines: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pid = engines.folder / "pid"
    code = (
        "import pathlib, signal, subprocess; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600']); pathlib.Path('part').write_text(str(child.pid))\n"
        "pathlib.Path('part').rename('pid'); child.wait()"
    )
    # The limit is over as soon as the child runs.
    monkeypatch.setattr(engines, "_clock", lambda: time.monotonic() + (1e6 if pid.exists() else 0))
    program(monkeypatch, tmp_path, code)
    monkeypatch.setattr(pool, "GRACE_S", 0.2)
    outcome = engines.outcome("qwen3-whole-stock")
    assert outcome.is_cut
    assert outcome.tail().endswith("engine qwen3-whole-stock: ended by its limit of 300 s")
    deadline = time.monotonic() + 5
    while is_running(pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)  # a killed process takes a moment to end
    assert not is_running(pid.read_text())


def is_running(pid: str) -> bool:
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_pool_runs_another_program_with_its_cases_and_environment(tmp_path: Path) -> None:
    (tmp_path / "another.py").write_text(
        "import json, os, sys; open(sys.argv[3], 'w').write(json.dumps([sys.argv[1], os.environ['PLACE']]))"
    )
    case = sglang_cases.Case("first", environment={"PLACE": "case"})
    engines = Pool(
        *(sys.executable, tmp_path / "out", lambda line: None),
        program="another",
        cases={"first": case},
        environment=lambda folder: {"PYTHONPATH": str(folder.parent), "PLACE": "pool"},
    )
    engines._models = {case.model: tmp_path / "model"}
    assert engines.outcome("first").result == ["first", "case"]
    engines.stop()


@pytest.mark.parametrize(
    ("environment", "folder_of"),
    [(environment, "VLLM_CACHE_ROOT"), (sglang_cases.environment, "SGLANG_CACHE_DIR")],
    ids=["vllm", "sglang"],
)
def test_environment_of_an_engine_has_no_variable_of_the_caller(
    environment: Callable[[Path], dict[str, str]],
    folder_of: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"VITCACHE_DISABLE", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES"}
    names.add("VLLM_PLUGINS" if folder_of.startswith("VLLM") else "SGLANG_VLM_CACHE_SIZE_MB")
    for name in names:
        monkeypatch.setenv(name, "1")
    found = environment(tmp_path)
    assert not names & set(found)
    assert found["PYTHONPATH"].split(os.pathsep)[0] == str(pool.SUPPORT)
    assert found[folder_of].startswith(str(tmp_path))


def test_cases_have_unique_names_and_pairs_differ_in_their_mode_only() -> None:
    assert all(case.name == name for name, case in cases.CASES.items())
    for name, case in cases.CASES.items():
        if name.endswith("-stock"):
            partner = cases.CASES[name.replace("-stock", "-vitcache")]
            assert replace(partner, name=name, mode="stock") == case
            assert "ec_transfer_config" not in case.options()
            assert partner.options()["ec_manager_config"] == {"encoder_cache_manager_cls": cases.MANAGER}


def test_cases_of_sglang_have_unique_names_and_stock_loads_no_vitcache() -> None:
    assert all(case.name == name for name, case in sglang_cases.CASES.items())
    loads = {name: case.variables()["SGLANG_PLUGINS"] for name, case in sglang_cases.CASES.items()}
    assert {name for name, plug_ins in loads.items() if "vitcache" not in plug_ins} == {
        name for name in loads if "stock" in name
    }
