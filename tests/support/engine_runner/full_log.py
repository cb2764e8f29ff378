"""The log of a full run: versions, and the time and the counts of every engine and test."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from engine_runner.pool import Outcome

ROOT = Path(__file__).resolve().parents[3]


class FinishedTest(NamedTuple):
    """How a test ended, and the properties that it has recorded."""

    name: str
    outcome: str
    seconds: float
    properties: dict[str, Any]

    def lines(self) -> Iterator[str]:
        yield f"{self.outcome:8} {self.seconds:6.1f} s  {self.name}"
        for name, value in self.properties.items():
            yield f"    {name} {value}"


def commit() -> str:
    """The commit of the checkout, with `-dirty` after it if files differ."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def encodes(result: dict[str, Any]) -> str:
    """The number of encodes of each step of an engine. Of turns at once, the first has the number of all."""
    steps = {name: turns for name, turns in result.items() if is_counted(turns)}
    return ", ".join(
        f"{name} {len(turns)} turns {sum(turn.get('encodes', 0) for turn in turns)} encodes"
        for name, turns in steps.items()
    )


def is_counted(turns: Any) -> bool:
    """Whether a part of a result has the turns of a step, with their encodes."""
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "encodes" in turns[0]


def flat(counts: dict[str, Any], name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of counts within counts, each with the names that lead to it."""
    for key, value in counts.items():
        if isinstance(value, dict):
            yield from flat(value, f"{name}{key} ")
        elif isinstance(value, int | float):
            yield f"{name}{key}", value


def lines_of(outcome: Outcome) -> Iterable[str]:
    """The lines of one engine."""
    result = outcome.result
    up = f"up in {result['up_s']:.1f} s" if result else "did not start"
    ended = f"{outcome.case.name:24} {outcome.seconds:6.1f} s  exit code {outcome.code}"
    yield f"{ended}  {up}  {encodes(result)}"
    for name, value in flat(result.get("counters", result.get("counts", {}))):
        yield f"    {name} {value:g}"


def write_log(
    path: Path,
    packages: Sequence[str],
    outcomes: list[Outcome],
    tests: list[FinishedTest],
    exit_status: int,
    seconds: float,
) -> None:
    """Write the log; the run passed if `exit_status` is 0."""
    lines = [
        "make engines FULL=1",
        f"date {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}",
        f"exit status {int(exit_status)}, {seconds:.0f} s",
        f"Python {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPU cores",
        ", ".join(f"{package} {version(package)}" for package in packages),
        "",
        "engines",
        *(line for outcome in outcomes for line in lines_of(outcome)),
        "",
        "tests",
        *(line for test in tests for line in test.lines()),
    ]
    path.write_text("\n".join(lines) + "\n")
