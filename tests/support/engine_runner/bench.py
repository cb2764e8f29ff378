"""Runs a bench of an engine with its smoke cases, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 600


def run_smoke_cases(bench: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of the result file, which is in `folder`, and the output. A failure fails the test."""
    command = [sys.executable, "-m", "vitcache", "bench", "--bench", bench, "--cases", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(folder)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    if done.returncode:
        pytest.fail(done.stdout, pytrace=False)
    [path] = folder.glob(f"{bench}-*.json")
    return json.loads(path.read_text()), done.stdout
