"""``python -m vitcache bench``: run benches case by case, write results immediately, print missed targets."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from vitcache.bench.harness.record import ROOT, Recorder
from vitcache.bench.harness.registry import CPU, cases_for
from vitcache.bench.harness.timing import Timer

NAMES = (
    *("accuracy", "attach", "blocks", "cache", "cpu", "decode", "hits", "keys"),
    *("limit", "multiturn", "pages", "placement", "policy", "ring", "scatter", "step"),
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


def run(args: argparse.Namespace) -> int:
    """Run the chosen benches; return 1 if a case raised, else 0. A missed target is only printed."""
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
        bench_device = getattr(bench, "DEVICE", device)
        is_claimed = bench_device.type == "cuda" or getattr(bench, "CLAIMS_CPU", False)
        size = args.cases or ("full" if is_claimed else "smoke")
        cases = cases_for(bench.CASES[size], size, bench_device.type)
        if not cases:
            print(f"{name}: no case of the size {size} runs on a device of the type {bench_device.type}")
            continue
        recorder, timer = Recorder(name, args.out, bench_device), Timer(bench_device, REPEATS[size])
        for number, case in enumerate(cases, 1):
            label = f"{name} {number}/{len(cases)} {case.name}"
            try:
                torch.manual_seed(0)
                for step in bench.run_case(case, recorder, timer):
                    _progress(f"{label}: {step}")
            except Exception as error:
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
