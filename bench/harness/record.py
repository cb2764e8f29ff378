"""One schema for all results. Every file is valid JSON after each result.

With a `ResultLines`, each result is also a line there, between the lines that begin and end its case.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from bisect import bisect_right
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vitcache.bench.harness.result_lines import ResultLines, cases_of, read
from vitcache.bench.harness.timing import Sample
from vitcache.terminal.result_file import replace_file

ROOT = Path(__file__).resolve().parents[1]  # bench/
# A wheel has no result files, and its folder may be read-only.
RESULTS = ROOT / "results" if (ROOT / "results").is_dir() else Path("results")
FIELDS = (
    *("bench", "case", "contender", "metric", "unit", "value", "p20", "p80", "bytes", "ratio", "ratio_to"),
    *("target", "meets_target", "device", "driver", "torch", "triton", "commit", "utc"),
)


class Recorder:
    """Collects the results of one bench.

    Replaces the file after each result, so that the file of an interrupted run contains all results so far,
    also if the disk is full.
    """

    def __init__(
        self,
        bench: str,
        directory: Path,
        device: torch.device,
        *,
        lines: ResultLines | None = None,
        resume: bool = False,
    ) -> None:
        self.rows: list[dict[str, Any]] = []  # in the order of the cases, also if a resumed run repeats one
        self._numbers: list[int] = []  # by row: the number of its case
        self._number = 0  # of the case that has begun
        self.bench = bench
        self.machine = describe_machine(device)
        directory.mkdir(parents=True, exist_ok=True)
        self.path = path_of(bench, self.machine["device"], directory)
        self._lines = lines
        self._finished: set[str] = set()
        if lines is not None and resume:
            for case in cases_of(read(lines.path)).get(bench, []):
                if case.state == "finished":
                    self._finished.add(case.name)
                    self.rows += case.rows
                    self._numbers += [case.number] * len(case.rows)

    def has_finished(self, case: str) -> bool:
        """Whether an earlier run, which this run resumes, finished the case. Its rows are in `rows`."""
        return case in self._finished

    def begin(self, case: str, number: int, count: int) -> None:
        """Record that case `number` of `count` begins. It replaces an earlier attempt at the case."""
        self._number = number
        if self._lines is not None:
            self._lines.add("case", bench=self.bench, case=case, state="begun", number=number, count=count)

    def end(self, case: str, error: Exception | None = None) -> None:
        """Record that the case is finished, or failed with an error."""
        if self._lines is not None:
            state = "finished" if error is None else "failed"
            message = None if error is None else f"{type(error).__name__}: {error}"
            self._lines.add("case", bench=self.bench, case=case, state=state, error=message)

    def add(
        self,
        case: str,
        contender: str,
        metric: str,
        unit: str,
        sample: Sample,
        *,
        bytes_moved: int | None = None,
        against: tuple[str, float] | None = None,
        target: float | None = None,
        limit: float | None = None,
        at_least: bool = False,
    ) -> None:
        """Add one result.

        `against` is the name and the value of the reference: ``ratio`` is ``value`` divided by that value.
        `target` is the design's number, if it has one. `limit` is the largest allowed ``value`` in this run;
        with `at_least`, the smallest. It follows from `target` and from other measurements of the run.
        """
        ratio = None if against is None else sample.value / against[1]
        row = {
            "bench": self.bench,
            "case": case,
            "contender": contender,
            "metric": metric,
            "unit": unit,
            "value": _rounded(sample.value),
            "p20": _rounded(sample.p20),
            "p80": _rounded(sample.p80),
            "bytes": bytes_moved,
            "ratio": _rounded(ratio),
            "ratio_to": None if against is None else against[0],
            "target": target,
            "meets_target": None
            if limit is None
            else sample.value >= limit
            if at_least
            else sample.value <= limit,
            **self.machine,
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        row = {name: row[name] for name in FIELDS}
        place = bisect_right(self._numbers, self._number)
        self._numbers.insert(place, self._number)
        self.rows.insert(place, row)
        if self._lines is not None:
            self._lines.add("row", **row)
        write_rows(self.rows, self.path)


def path_of(bench: str, device: str, directory: Path) -> Path:
    """Return the path of a bench's results on a device with this name."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return directory / f"{bench}-{name}.json"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a result file.

    Raises
    ------
    ValueError
        If the file is not a JSON list of objects with the fields of `FIELDS`. The message names the file.
    OSError
        If the file cannot be read.
    """
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # RecursionError: too many nested lists
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} is not a result file: expected a list of rows")
    for number, row in enumerate(rows, 1):
        missing = [name for name in FIELDS if not isinstance(row, dict) or name not in row]
        if missing:
            raise ValueError(f"{path} is not a result file: row {number} has no {', '.join(missing)}")
    return rows


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a result file, with one row per line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    replace_file(path, f"[\n{lines}\n]\n")


@cache
def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the facts that a result depends on: device, driver, torch, triton, commit.

    The environment variable VITCACHE_COMMIT names the commit where the sources are not in a git repository.
    """
    try:
        import triton

        triton_version: str | None = triton.__version__
    except ImportError:
        triton_version = None
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu {platform.machine()}",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if cuda
        else None,
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": os.environ.get("VITCACHE_COMMIT")
        or _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
    }


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().splitlines()[0]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
