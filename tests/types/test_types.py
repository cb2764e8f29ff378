"""The types of the installed package, as the type checkers of a user see them.

mypy --strict and pyright run in an empty folder, so they read the installed package, not the checkout. They
accept program.py, and report the marked lines of mistakes.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# mypy parses torch in half a minute. Later runs read the result from this folder.
CACHE = Path(__file__).parents[2] / "build" / "mypy-of-users"

Errors = dict[tuple[str, int], str]  # (file, line): message


def run_checker(folder: Path, *command: str) -> str:
    """Run a checker in `folder` with both files; return its standard output."""
    hidden = ("PYTHONPATH", "MYPYPATH", "MYPY_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"  # pyright asks PyPI for a newer release otherwise
    done = subprocess.run(
        [sys.executable, "-m", *command, "program.py", "mistakes.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # errors were found, and the checker did not fail
    return done.stdout


def run_mypy(folder: Path) -> Errors:
    lines = run_checker(folder, "mypy", "--strict", "--cache-dir", str(CACHE)).splitlines()
    found = [re.fullmatch(r"(\w+\.py):(\d+): error: (.*)", line) for line in lines]
    return {(match[1], int(match[2])): match[3] for match in found if match}


def run_pyright(folder: Path) -> Errors:
    output = run_checker(folder, "pyright", "--outputjson", "--pythonpath", sys.executable)
    return {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1): found["message"]
        for found in json.loads(output)["generalDiagnostics"]
        if found["severity"] == "error"
    }


@pytest.fixture(scope="module", params=[run_mypy, run_pyright], ids=["mypy", "pyright"])
def errors(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Errors:
    checker: Callable[[Path], Errors] = request.param
    pytest.importorskip(checker.__name__.removeprefix("run_"))
    folder = tmp_path_factory.mktemp("user")
    for name in ("program.py", "mistakes.py"):
        shutil.copy(HERE / name, folder)
    return checker(folder)


def test_program_of_a_user_has_no_type_error(errors: Errors) -> None:
    assert {place: text for place, text in errors.items() if place[0] == "program.py"} == {}


def test_each_marked_mistake_is_a_type_error_and_no_other_line(errors: Errors) -> None:
    lines = (HERE / "mistakes.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = {line: text for (name, line), text in errors.items() if name == "mistakes.py"}
    assert found.keys() == marked, found
