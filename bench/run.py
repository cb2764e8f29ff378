"""``python -m vitcache bench``: run benches case by case, write results immediately, print missed targets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from vitcache.bench.harness.record import ROOT, Recorder
from vitcache.bench.harness.registry import CPU, GPU, cases_for
from vitcache.bench.harness.result_lines import ResultLines
from vitcache.bench.harness.timing import Timer

NAMES = (
    *("accuracy", "attach", "blocks", "cache", "cpu", "decode", "engines", "hits", "keys"),
    *("limit", "merge", "multiturn", "pages", "placement", "policy", "ring", "scatter", "step"),
)
BENCHES: dict[str, ModuleType] = {
    name: import_module(f"vitcache.bench.claims.bench_{name}") for name in NAMES
}
REPEATS = {"full": 50, "smoke": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument(
        "--bench",
        choices=sorted(BENCHES),
        help="run only this bench (default: all; on a GPU, all that measure it)",
    )
    parser.add_argument(
        "--cases",
        choices=sorted(REPEATS),
        help="default: full on a GPU; without a GPU smoke, but full for benches with a claim about the CPU",
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results", metavar="DIR", help="folder of the JSON files"
    )
    parser.add_argument("--lines", type=Path, metavar="FILE", help="also append each result to this file")
    parser.add_argument(
        "--resume", action="store_true", help="leave out cases that are finished in the file of --lines"
    )
    parser.add_argument(
        "--list", action="store_true", help="print a JSON object: for each bench, whether a GPU runs it"
    )


def run(args: argparse.Namespace) -> int:
    """Run the chosen benches; return 1 if a case raised, else 0. A missed target is only printed.

    Without a name, benches whose package is not installed are left out. With its name, such a bench gives 1.
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
            print(f"vitcache bench: {name} needs {missing}, which is not installed", file=sys.stderr)
            return 1
        if missing:
            print(f"{name}: left out, it needs {missing}, which is not installed")
            continue
        bench_device = getattr(bench, "DEVICE", device)
        is_claimed = bench_device.type == "cuda" or getattr(bench, "CLAIMS_CPU", False)
        size = args.cases or ("full" if is_claimed else "smoke")
        cases = cases_for(bench.CASES[size], size, bench_device.type)
        if not cases:
            print(f"{name}: no case of the size {size} runs on a device of the type {bench_device.type}")
            continue
        lines = ResultLines(args.lines) if args.lines else None
        recorder = Recorder(name, args.out, bench_device, lines=lines, resume=args.resume)
        timer = Timer(bench_device, REPEATS[size])
        for number, case in enumerate(cases, 1):
            label = f"{name} {number}/{len(cases)} {case.name}"
            if recorder.has_finished(case.name):
                continue
            recorder.begin(case.name, number, len(cases))
            try:
                torch.manual_seed(0)
                for step in bench.run_case(case, recorder, timer):
                    _progress(f"{label}: {step}")
                recorder.end(case.name)
            except Exception as error:
                recorder.end(case.name, error)
                failures += 1
                _progress("")
                print(f"{label} failed: {type(error).__name__}: {error}", file=sys.stderr)
        _progress("")
        _print_table(recorder)
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


def missing_requirement(name: str) -> str | None:
    """Return the name of the package that a bench needs and that is not installed, else None."""
    package: str | None = getattr(BENCHES[name], "REQUIRES", None)
    return package if package is not None and find_spec(package) is None else None


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _print_table(recorder: Recorder) -> None:
    print(f"\n{recorder.bench} on {recorder.machine['device']} -> {recorder.path}")
    names = ("case", "contender", "metric")
    widths = [max(len(name), *(len(row[name]) for row in recorder.rows), 0) for name in names]
    head = " ".join(f"{name:<{width}}" for name, width in zip(names, widths, strict=True))
    print(f"{head} {'value':>12} {'p20':>10} {'p80':>10}  ratio")
    for row in recorder.rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g} x {row['ratio_to']}"
        missed = "  MISSES TARGET" if row["meets_target"] is False else ""
        label = " ".join(f"{row[name]:<{width}}" for name, width in zip(names, widths, strict=True))
        print(f"{label} {row['value']:>12.6g} {row['p20']:>10.5g} {row['p80']:>10.5g}  {ratio}{missed}")
    missed = [row for row in recorder.rows if row["meets_target"] is False]
    judged = [row for row in recorder.rows if row["meets_target"] is not None]
    print(f"{len(recorder.rows)} results; {len(judged)} have a target, {len(missed)} of these miss it")
