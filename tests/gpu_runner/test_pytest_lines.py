"""The plugin of `make gpu`: a line per test, and only unfinished tests in a resumed run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_runner.lines import ROOT, read

TESTS = """
import os
import pytest

def test_passes():
    pass

def test_fails_until_mended():
    assert os.environ.get("MENDED"), "not " + "mended"

@pytest.mark.skip(reason="no device")
def test_is_skipped():
    pass

@pytest.fixture
def broken():
    raise RuntimeError("broken fixture")

def test_has_a_broken_fixture(broken):
    pass

def test_kills_its_worker():
    if "PYTEST_XDIST_WORKER" in os.environ and "MENDED" not in os.environ:
        os._exit(1)

def test_is_the_last():
    pass
"""
OUTCOMES = {
    "test_passes": "passed",
    "test_fails_until_mended": "failed",
    "test_is_skipped": "skipped",
    "test_has_a_broken_fixture": "failed",
    "test_kills_its_worker": "passed",
    "test_is_the_last": "passed",
}


def run_tests(folder: Path, *options: str, **variables: str) -> str:
    (folder / "test_example.py").write_text(TESTS)
    # This test itself may run in a worker of xdist.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env = {
        **outer,
        "PYTHONPATH": str(ROOT / "tests/support"),
        "VITCACHE_TEST_LINES": str(folder / "results.jsonl"),
        "VITCACHE_TEST_SUITE": "tests",
        **variables,
    }
    command = [sys.executable, "-m", "pytest", "-p", "gpu_runner.pytest_lines", "-p", "no:cacheprovider"]
    command += ["-p", "no:hypothesispytest", "--rootdir", str(folder), *options, "test_example.py"]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True).stdout


def outcomes(folder: Path) -> dict[str, str]:
    return {
        line["test"].partition("::")[2]: line["outcome"]
        for line in read(folder / "results.jsonl")
        if line["kind"] == "test"
    }


@pytest.mark.parametrize("worker", [False, True], ids=["no worker", "worker"])
def test_each_test_has_a_line_and_a_resumed_run_repeats_only_failed_tests(
    tmp_path: Path, worker: bool
) -> None:
    options = ["-n", "1", "--max-worker-restart", "3"] if worker else []
    if worker:
        pytest.importorskip("xdist")
    run_tests(tmp_path, *options)
    lost = {"test_kills_its_worker": "failed"} if worker else {}
    assert outcomes(tmp_path) == {**OUTCOMES, **lost}
    messages = {line["test"].partition("::")[2]: line["message"] for line in read(tmp_path / "results.jsonl")}
    assert "not mended" in messages["test_fails_until_mended"]
    assert "broken fixture" in messages["test_has_a_broken_fixture"]
    assert "no device" in messages["test_is_skipped"]
    assert messages["test_passes"] == ""
    num_lines = len(read(tmp_path / "results.jsonl"))
    run_tests(tmp_path, *options, VITCACHE_TEST_RESUME="1", MENDED="1")
    repeated = read(tmp_path / "results.jsonl")[num_lines:]
    names = [line["test"].partition("::")[2] for line in repeated]
    assert names == ["test_fails_until_mended", "test_has_a_broken_fixture", *lost]
    assert outcomes(tmp_path) == {**OUTCOMES, "test_fails_until_mended": "passed"}


def test_long_failure_is_shortened_in_its_line_and_says_by_how_much(tmp_path: Path) -> None:
    long = TESTS.replace('"not " + "mended"', '"long" * 10_000')
    (tmp_path / "test_long.py").write_text(long)
    run_tests(tmp_path, "test_long.py")
    [line] = [line for line in read(tmp_path / "results.jsonl") if "test_long.py::test_fails" in line["test"]]
    assert line["message"].endswith("more characters, see the log)")
    assert len(line["message"]) < 20_100
