"""Starts an engine in a process of its own, and reads its result."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitcache.bench.engines import model_folder
from vitcache.bench.engines.contenders import EngineOptions
from vitcache.bench.engines.variables import of_child
from vitcache.bench.harness.registry import CPU

LIMIT_S = 600
TAIL_LINES = 30


class EngineFailed(RuntimeError):
    """The process of an engine did not end well; the message has the end of its output."""

    @property
    def reason(self) -> str:
        """The last line that names an error, else the first line."""
        lines = str(self).splitlines()
        return next((line for line in reversed(lines) if "Error" in line), lines[0])


def run_engine(
    options: EngineOptions,
    steps: dict[str, dict[str, Any]],
    folder: Path,
    device_type: str = CPU,
    *,
    is_killed: bool = False,
) -> dict[str, Any]:
    """Run one engine and return the results of its steps, by name.

    With `is_killed`, the process of the engine kills itself after the steps.

    Raises
    ------
    EngineFailed
        If the process fails, or runs longer than `LIMIT_S` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, result = make_model(options.size, folder), folder / "result.json"
    result.unlink(missing_ok=True)
    given = json.dumps({"engine": asdict(options), "steps": steps, "is_killed": is_killed})
    variables = of_child(device_type, options.model_runner, folder)
    expected = -signal.SIGKILL if is_killed else 0
    run_module(["vitcache.bench.engines.child", given, str(model), str(result)], variables, folder, expected)
    answer: dict[str, Any] = json.loads(result.read_text())
    return answer


def make_model(size: str, folder: Path) -> Path:
    """Return the folder of a model. It is made once for each version of the program that makes it."""
    version = hashlib.sha256(Path(str(model_folder.__file__)).read_bytes()).hexdigest()[:8]
    model = folder / f"model-{size}-{version}"
    if not model.exists():
        run_module(
            ["vitcache.bench.engines.model_folder", size, str(model)], of_child(CPU, 1, folder), folder
        )
    return model


def run_module(module: list[str], variables: dict[str, str], folder: Path, expected: int | None = 0) -> str:
    """Run a module of Python with its arguments in a process of its own, whose working folder is `folder`.

    Returns the end of its output.

    Raises
    ------
    EngineFailed
        If the process runs longer than `LIMIT_S` seconds, or its exit code is not `expected`. None: each exit
        code is expected.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", *module],
            env=variables,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineFailed(f"{module[0]} ran longer than {LIMIT_S} s") from error
    tail = "\n".join(done.stdout.splitlines()[-TAIL_LINES:])
    if expected not in (None, done.returncode):
        raise EngineFailed(f"{module[0]} ended with exit code {done.returncode}:\n{tail}")
    return tail
