"""The variables of `make gpu`, and the script that passes them on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_runner.facts import commit_of
from gpu_runner.lines import ROOT
from gpu_runner.settings import Settings


def test_settings_without_variables_are_a_full_run() -> None:
    settings = Settings.read({}, "python3")
    assert settings == Settings("python3", Path("results"))
    assert settings.needs_build
    assert settings.lines == ROOT / "results/results.jsonl"


def test_settings_are_read_from_every_variable() -> None:
    env = {"DRY": "1", "ONLY": "tests ring", "RESULTS": "out", "BUDGET": "560", "RESUME": "earlier"}
    settings = Settings.read(env, ".venv/bin/python")
    assert settings == Settings(
        ".venv/bin/python", Path("out"), ("tests", "ring"), True, 560, Path("earlier")
    )
    assert not settings.needs_build


def test_resume_is_the_default_folder_of_the_results() -> None:
    assert Settings.read({"RESUME": "out"}, "python3").results == Path("out")
    assert Settings.read({"DRY": "1"}, "python3").results == Path("results/dry")
    assert not Settings.read({"DRY": "0"}, "python3").dry


def test_environment_of_a_part_has_the_caller_s_python_path_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_PYTHONPATH", "/site")
    paths = Settings("python3", Path("out"), dry=True).environment()["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(ROOT / "build/gpu"), str(ROOT / "tests/support"), "/site"]


def test_dry_run_uses_no_gpu_even_if_the_machine_has_one() -> None:
    env = Settings("python3", Path("out"), dry=True).environment()
    assert (env["CUDA_VISIBLE_DEVICES"], env["VITCACHE_GPU_DRY"], env["TRITON_INTERPRET"]) == ("", "1", "1")


def test_commit_is_the_variable_else_git_s_else_a_digest_of_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    settings = Settings("python3", Path("out"), root=tmp_path)
    (tmp_path / "vitcache").mkdir()
    (tmp_path / "vitcache/rows.py").write_text("1")
    monkeypatch.delenv("COMMIT", raising=False)
    first = commit_of(settings)
    assert first.startswith("sources-")
    (tmp_path / "vitcache/rows.py").write_text("2")
    assert commit_of(settings).startswith("sources-")
    assert commit_of(settings) != first
    monkeypatch.setenv("COMMIT", "abc")
    assert commit_of(settings) == "abc"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ONLY": "tests nothing"}, "each part in ONLY must be one of: probe tests sanitize accuracy"),
        ({"BUDGET": "10m"}, "BUDGET must be a number of seconds above 0, got '10m'"),
        ({"PYTHON": "/no/python"}, "/no/python was not found: set PYTHON to an interpreter"),
    ],
    ids=["ONLY", "BUDGET", "PYTHON"],
)
def test_script_refuses_a_wrong_variable_by_its_name(variables: dict[str, str], message: str) -> None:
    env = {**os.environ, "PYTHON": sys.executable, "DRY": "1", **variables}
    done = subprocess.run(["bash", str(ROOT / "tests/gpu/run.sh")], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("make gpu: ")
    assert message in done.stderr


def test_script_with_too_short_a_budget_ends_without_a_failure(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHON": sys.executable, "DRY": "1", "BUDGET": "2.1", "ONLY": "keys"}
    env["RESULTS"] = str(tmp_path / "out")
    done = subprocess.run(["bash", str(ROOT / "tests/gpu/run.sh")], env=env, capture_output=True, text=True)
    assert "BUDGET=2.1 ended the run before its first part" in done.stderr
    assert done.returncode == 0
    assert not (tmp_path / "out").exists()


def test_every_variable_of_the_script_is_passed_on_by_make_and_documented() -> None:
    script, makefile = (ROOT / "tests/gpu/run.sh").read_text(), (ROOT / "Makefile").read_text()
    for name in ("RESULTS", "ONLY", "BUDGET", "RESUME", "DRY", "PYTHON", "COMMIT"):
        assert f"\n#   {name}=" in script
        assert f"{name}='$({name})'" in makefile
