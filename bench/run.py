"""``vitcache bench``: run benches case by case, write results immediately, print missed targets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vitcache.bench.harness.record import RESULTS, Recorder
from vitcache.bench.harness.registry import CPU, GPU, cases_for
from vitcache.bench.harness.result_lines import ResultLines
from vitcache.bench.harness.timing import Timer
from vitcache.extras import need_of, package_of
from vitcache.terminal.progress import Progress
from vitcache.terminal.table import Table

NAMES = (
    *(
        "accuracy",
        "attach",
        "blocks",
        "cache",
        "changes",
        "cpu",
        "decode",
        "engines",
        "fleet",
        "hits",
        "keys",
    ),
    *("limit", "merge", "mooncake", "multiturn", "pages", "placement", "policy", "ring", "scatter", "sglang"),
    *("sglang_chat", "step", "tiers"),
)
BENCHES: dict[str, ModuleType] = {
    name: import_module(f"vitcache.bench.claims.bench_{name}") for name in NAMES
}
Row = dict[str, Any]
REPEATS = {"full": 50, "smoke": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument(
        "--bench",
        choices=sorted(BENCHES),
        metavar="NAME",
        help=f"run only this bench: {', '.join(sorted(BENCHES))} (default: all; on a GPU, all that measure "
        "it)",
    )
    parser.add_argument(
        "--cases",
        choices=sorted(REPEATS),
        help="sizes (default: full on a GPU; without a GPU smoke, but full for benches that make a claim "
        "about the CPU)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="folder of the JSON files (default: bench/results in a checkout, else results)",
    )
    parser.add_argument(
        "--lines", type=Path, metavar="FILE", help="also append each result to this file (default: none)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="leave out cases that are finished in the file of --lines"
    )
    parser.add_argument(
        "--list", action="store_true", help="print a JSON object: for each bench, whether a GPU runs it"
    )


def run(args: argparse.Namespace) -> int:
    """Run the chosen benches; return 1 if a case raised, else 0. A missed target is only printed.

    Without a name, benches whose package is not installed are left out. With its name, such a bench gives 1.
    Returns 2 if a folder or file for results cannot be written.
    """
    if args.list:
        on_gpu = names_for(GPU)
        print(json.dumps({name: name in on_gpu for name in BENCHES}))
        return 0
    if args.resume and args.lines is None:
        print("vitcache bench: --resume needs --lines, the file of the earlier results", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        # Triton reads this variable when a kernel is defined. Without a GPU the benches of the kernels run in
        # Triton's interpreter, only to show that they work.
        os.environ.setdefault("TRITON_INTERPRET", "1")
    failures = 0
    names = [args.bench] if args.bench else names_for(device.type)
    for name in sorted(BENCHES.keys() - set(names)) if args.bench is None else ():
        print(f"{name}: left out, it measures the CPU; choose it with --bench {name}")
    for name in names:
        bench = BENCHES[name]
        missing = missing_requirement(name)
        if missing and args.bench:
            print(f"vitcache bench: {name} {need_of(missing)}", file=sys.stderr)
            return 1
        if missing:
            print(f"{name}: left out, it needs {package_of(missing)}, which is not installed")
            continue
        bench_device = getattr(bench, "DEVICE", device)
        is_claimed = bench_device.type == "cuda" or getattr(bench, "CLAIMS_CPU", False)
        size = args.cases or ("full" if is_claimed else "smoke")
        cases = cases_for(bench.CASES[size], size, bench_device.type)
        if not cases:
            print(f"{name}: no case of the size {size} runs on a device of the type {bench_device.type}")
            continue
        try:
            lines = ResultLines(args.lines) if args.lines else None
            recorder = Recorder(name, args.out, bench_device, lines=lines, resume=args.resume)
        except OSError as error:
            print(f"vitcache bench: {error.filename}: cannot be written: {error.strerror}", file=sys.stderr)
            return 2
        with Progress(name) as progress:
            shown = CaseProgress(progress, len(cases))
            timer = Timer(bench_device, REPEATS[size], on_round=shown.show_round)
            for number, case in enumerate(cases, 1):
                if recorder.has_finished(case.name):
                    continue
                recorder.begin(case.name, number, len(cases))
                shown.begin(case.name, number)
                try:
                    torch.manual_seed(0)
                    for step in bench.run_case(case, recorder, timer):
                        shown.show_step(step)
                    recorder.end(case.name)
                except Exception as error:
                    recorder.end(case.name, error)
                    failures += 1
                    progress.print(f"{name} {shown.label} failed: {describe_failure(error)}")
        print_table(recorder, judges_targets=size == "full")
    return 1 if failures else 0


def names_for(device_type: str) -> list[str]:
    """Return the names of the benches with a claim about a machine: about its GPU if it has one, else all.

    A module with ``DEVICE = torch.device("cpu")`` measures the CPU on every machine.
    """
    if device_type == CPU:
        return sorted(BENCHES)
    return sorted(
        name
        for name, bench in BENCHES.items()
        if getattr(bench, "DEVICE", None) is None and cases_for(bench.CASES["full"], "full", device_type)
    )


def describe_failure(error: Exception) -> str:
    """Return the reason: for a missing package its name at PyPI, and the command that installs it."""
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("vitcache"):
        return f"it {need_of(error.name)}"
    return f"{type(error).__name__}: {error}"


def missing_requirement(name: str) -> str | None:
    """Return the name of the package that a bench needs and that is not installed, else None."""
    package: str | None = getattr(BENCHES[name], "REQUIRES", None)
    return package if package is not None and find_spec(package) is None else None


class CaseProgress:
    """Shows the case of a bench that runs, its step, and the round of measurements within a step."""

    def __init__(self, progress: Progress, num_cases: int) -> None:
        self._progress, self._num_cases = progress, num_cases
        self._number = 0
        self._step = self.label = ""

    def begin(self, case: str, number: int) -> None:
        """Show that case `number` begins."""
        self._number = number
        self.label = f"{number}/{self._num_cases} {case}"
        self.show_step("begins")

    def show_step(self, step: str) -> None:
        """Show a step of the case."""
        self._step = f"{self.label}: {step}"
        self._show(self._step, is_frequent=False)

    def show_round(self, done: int, total: int) -> None:
        """Show that `done` of `total` rounds of the step are done."""
        self._show(f"{self._step} ({done + 1}/{total})", is_frequent=True)

    def _show(self, text: str, *, is_frequent: bool) -> None:
        self._progress.show(text, self._number - 1, self._num_cases, is_frequent=is_frequent)


def print_table(recorder: Recorder, *, judges_targets: bool) -> None:
    """Print the results of a bench in groups of one case, metric and reference; mark missed targets.

    `judges_targets` is False for smoke sizes: the targets are for full sizes.
    """
    print(f"\n{recorder.bench} on {recorder.machine['device']} -> {recorder.path}")
    table = Table(["contender", "value", "p20", "p80", "ratio", "target"], right=range(1, 5))
    group = None
    for row in sorted(recorder.rows, key=_group_order(recorder.rows)):
        if _group(row) != group:
            group = _group(row)
            table.begin_group(_group_title(row))
        misses = judges_targets and row["meets_target"] is False
        table.add(
            row["contender"],
            *(f"{row[name]:.5g}" for name in ("value", "p20", "p80")),
            "" if row["ratio"] is None else f"{row['ratio']:.3g}",
            "MISSES" if misses else "meets" if judges_targets and row["meets_target"] else "",
            style="bold red" if misses else "",
        )
    table.print()
    if not judges_targets:
        print(f"{len(recorder.rows)} results of smoke sizes; targets are for full sizes: --cases full")
        return
    missed = [row for row in recorder.rows if row["meets_target"] is False]
    judged = [row for row in recorder.rows if row["meets_target"] is not None]
    print(f"{len(recorder.rows)} results; {len(judged)} have a target, {len(missed)} of these miss it")


def _group(row: Row) -> tuple[object, ...]:
    return row["case"], row["metric"], row["unit"], row["ratio_to"]


def _group_order(rows: list[Row]) -> Callable[[Row], int]:
    """Return the sorting key that keeps the order of the groups, and the rows of a group together."""
    places = {group: place for place, group in enumerate(dict.fromkeys(map(_group, rows)))}
    return lambda row: places[_group(row)]


def _group_title(row: Row) -> str:
    reference = "" if row["ratio_to"] is None else f"; ratio to {row['ratio_to']}"
    return f"{row['case']}: {row['metric']} in {row['unit']}{reference}"
