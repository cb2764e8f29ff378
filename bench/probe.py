"""``python -m vitcache.bench.probe``: facts that only a GPU shows, within seconds. `make gpu` runs it first.

Contracts (CUDA graphs, kernels loaded once, calibration) get the verdict ok or BAD, measurements a number.
The benches measure the same times with more repeats, and judge them. An item that fails does not stop the
next. Without a GPU all items run on the CPU at smoke size, and Triton interprets the kernels.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vitcache.bench.harness.result_lines import ResultLines
from vitcache.bench.probes.findings import BAD, LEFT_OUT, Finding, Item, Subject

# A process of its own runs each of these, because a failure may leave its CUDA context unusable.
ISOLATED = ("first_use", "update_during_replay")
# Runs at the same time: kernels are compiled, so that its times need not be exact.
BESIDE = ("odd_ids",)
IN_TURN = ("host_time", "host_rows", "ring")
LEAST_S = 2.0  # with less time, an item is left out
HANG_S = 5.0  # this long after its time, a probe that hangs is ended
MOST_S = 120.0  # for an isolated item of a probe without a limit


def items() -> dict[str, Item]:
    """Return all items by name."""
    from vitcache.bench.probes import copies, graphs, launches

    return {
        "first_use": graphs.first_use,
        "update_during_replay": graphs.update_during_replay,
        "odd_ids": launches.odd_ids,
        "host_time": launches.host_time,
        "host_rows": copies.host_rows,
        "ring": copies.ring,
    }


def run_item(name: str, item: Item, subject: Subject) -> Iterator[Finding]:
    """Yield the findings of one item; an exception is a finding, too."""
    try:
        yield from item(subject)
    except Exception as error:
        yield Finding(name, BAD, text=f"{type(error).__name__}: {error}")


def start_isolated(name: str) -> subprocess.Popen[str]:
    """Start a process for one item, which prints a JSON object per finding."""
    command = [sys.executable, "-m", "vitcache.bench.probe", "--item", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_isolated(name: str, process: subprocess.Popen[str], limit_s: float) -> Iterator[Finding]:
    """Yield the findings of an item's process; if it is killed or ends early, that is a finding, too."""
    try:
        output, errors = process.communicate(timeout=max(limit_s, 0.1))
        reason = (errors.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        reason = f"the process was ended after {limit_s:.0f} s"
    for line in output.splitlines():
        if line.startswith("{"):
            yield Finding(**json.loads(line))
    if process.returncode:
        yield Finding(name, BAD, text=f"exit code {process.returncode}: {reason}")


def probe(
    limit_s: float | None, subject: Subject, clock: Callable[[], float] = time.monotonic
) -> Iterator[Finding]:
    """Yield the findings of all items, within `limit_s` seconds if a limit is given."""
    end = clock() + (float("inf") if limit_s is None else limit_s)
    processes = {name: start_isolated(name) for name in ISOLATED}
    for name in BESIDE:
        yield from run_item(name, items()[name], subject)
    for name, process in processes.items():
        yield from read_isolated(name, process, min(end - clock(), MOST_S))
    for name in IN_TURN:
        if end - clock() < LEAST_S:
            yield Finding(name, LEFT_OUT, text=f"the probe has {limit_s} s in all")
        else:
            yield from run_item(name, items()[name], subject)


@contextmanager
def kernels_everywhere(subject: Subject) -> Iterator[None]:
    """Without a GPU, place rows by Triton's interpreter instead of the CPU backend."""
    from vitcache.placement import dispatch

    chosen = dispatch.uses_kernels
    if not subject.on_gpu:
        dispatch.uses_kernels = lambda device: True
    try:
        yield
    finally:
        dispatch.uses_kernels = chosen


def main(arguments: list[str] | None = None) -> int:
    """Probe, print a line per finding, and return 1 if a finding is BAD, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, help="end after this time; items that do not fit are left out"
    )
    parser.add_argument("--lines", type=Path, metavar="FILE", help="also append each finding to this file")
    parser.add_argument("--item", choices=ISOLATED, help="run one item, and print its findings as JSON")
    args = parser.parse_args(arguments)
    device = torch.device("cpu")
    if torch.cuda.is_available() and os.environ.get("VITCACHE_GPU_DRY", "0") in ("", "0"):
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when a kernel is defined
    subject, num_bad = Subject(device), 0
    if args.seconds is not None:
        faulthandler.dump_traceback_later(args.seconds + HANG_S, exit=True)
    lines = ResultLines(args.lines) if args.lines else None
    with kernels_everywhere(subject):
        if args.item:
            for finding in items()[args.item](subject):
                print(json.dumps(finding.fields()), flush=True)
            return 0
        for finding in probe(args.seconds, subject):
            print(finding, flush=True)
            num_bad += finding.verdict == BAD
            if lines:
                lines.add("probe", **finding.fields())
    faulthandler.cancel_dump_traceback_later()
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
