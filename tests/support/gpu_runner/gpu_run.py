"""One run: check, build, run the parts within the budget, and print a summary."""

import shutil
import sys
import time
from datetime import UTC, datetime
from typing import Any

from gpu_runner import facts, outcomes
from gpu_runner.budget import Budget
from gpu_runner.facts import NotReady
from gpu_runner.junit import write_report
from gpu_runner.lines import Lines, ResultLines, read
from gpu_runner.outcomes import CUT, FAILED, OK
from gpu_runner.parts import Command, Part, bench_names, check_only, in_order, make_part
from gpu_runner.processes import Ended, run
from gpu_runner.settings import Settings

NO_TESTS = 5  # exit code of pytest if it selects no test
# Files that may return from a borrowed machine, and the largest size of each.
MOST_TRACES, MOST_BYTES = 3, 16 << 20
TRACE = "-timeline.json.gz"


class GpuRun:
    """One run with its settings and its budget; see `run`."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        self.settings, self.budget = settings, budget
        self._env = settings.environment()
        self._names: list[str] = []
        self._ends: dict[str, str] = {}  # by part: its seconds and its outcome
        self._num_failed = 0

    def run(self) -> int:
        """Run the chosen parts; return the exit code.

        Raises
        ------
        ValueError
            If ONLY has an unknown part, or the earlier results do not fit this run.
        NotReady
            If the interpreter, the device or the package is not usable.
        """
        settings = self.settings
        check_only(settings.only, bench_names(settings.root))
        machine = facts.ask(settings)
        has_xdist = machine.pop("has_xdist")
        self._env["VITCACHE_COMMIT"] = machine["commit"]
        self.open_results(machine)
        if settings.needs_build:
            facts.build(settings, self.write, self.budget.left_s)
        self._names = settings.only or in_order(facts.list_benches(settings), dry=settings.dry)
        self._names = list(dict.fromkeys(self._names))
        self.lines.add("run", **machine, utc=_utc(), budget_s=settings.budget_s, parts=self._names)
        finished = outcomes.finished_parts(read(settings.lines)) if settings.resume else set()
        shutil.rmtree(settings.bench_files, ignore_errors=True)
        try:
            for name in self._names:
                if name in finished:
                    self._ends[name] = "        ok in an earlier run"
                elif self.budget.allows():
                    self.run_part(make_part(name, settings, has_xdist=has_xdist))
        finally:
            self.copy_traces()
            self.print_summary()
        return 1 if self._num_failed else 0

    def open_results(self, machine: dict[str, Any]) -> None:
        """Make the folder of the results with its log, and copy the results of the earlier run to it."""
        settings = self.settings
        earlier = read(settings.root / settings.resume / "results.jsonl") if settings.resume else []
        if settings.resume and not earlier:
            raise ValueError(f"RESUME={settings.resume} has no results.jsonl with results to go on from")
        outcomes.check_machine(earlier, machine)
        folder = settings.lines.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if settings.resume is None:
                self._refuse_overwrite()
                settings.lines.write_bytes(b"")
                settings.log.write_bytes(b"")
            elif (settings.root / settings.resume).resolve() != folder:
                self._refuse_overwrite()
                for path in sorted((settings.root / settings.resume).iterdir()):
                    if path.is_file():
                        shutil.copyfile(path, folder / path.name)
            self.lines = ResultLines(settings.lines)
            self._log = settings.log.open("ab", buffering=0)
        except OSError as error:
            raise NotReady(f"RESULTS={settings.results} cannot be written: {error}") from error

    def _refuse_overwrite(self) -> None:
        """Results of a GPU are worth more than a command that was called twice."""
        if not self.settings.dry and any(
            line["kind"] in outcomes.RESULTS for line in read(self.settings.lines)
        ):
            results = self.settings.results
            raise ValueError(
                f"RESULTS={results} has results: RESUME={results} goes on; or choose another folder"
            )

    def run_part(self, part: Part) -> None:
        """Run the commands of a part, and record its outcome."""
        self.write(f"\n{part.name}\n".encode())
        self._ends[part.name] = "        interrupted"  # until it ends
        begin = time.monotonic()
        suites: list[str] = []
        ends: list[Ended] = []
        for command in part.commands:
            left_s = min(self.budget.left_s, part.limit_s - (time.monotonic() - begin))
            ends.append(self.run_command(command, left_s) if left_s > 0 else Ended(0, True))
            if command.suite:
                suites.append(command.suite)
                self._write_report(command.suite)
        self._end_part(part.name, time.monotonic() - begin, ends, suites)

    def run_command(self, command: Command, left_s: float) -> Ended:
        """Run one command; its output is printed and added to the log."""
        if shutil.which(command.arguments[0], path=None) is None:
            self.write(f"{command.arguments[0]} is not on PATH\n".encode())
            return Ended(127, False)
        return run(
            command.arguments,
            env={**self._env, **command.env},
            directory=self.settings.root,
            write=self.write,
            limit_s=left_s,
            grace_s=self.budget.grace_s,
        )

    def _end_part(self, name: str, seconds: float, ends: list[Ended], suites: list[str]) -> None:
        lines: Lines = read(self.settings.lines)
        has_failure, text = outcomes.describe(lines, name, suites)
        codes = [end.code for end in ends if not end.is_cut]
        # All tests were finished in the earlier run, so that pytest found none to run.
        if self.settings.resume and not has_failure:
            codes = [0 if suites and code == NO_TESTS else code for code in codes]
        failed = [code for code in codes if code]
        is_cut = any(end.is_cut for end in ends)
        outcome = FAILED if failed or (has_failure and not is_cut) else CUT if is_cut else OK
        self._num_failed += bool(failed or has_failure)
        self.lines.add("part", part=name, outcome=outcome, seconds=round(seconds, 1), utc=_utc())
        label = {OK: "ok", FAILED: f"FAILED ({(failed or [1])[0]})", CUT: "CUT"}[outcome]
        detail = "" if outcome == OK else f"  {text}"
        self._ends[name] = f"{seconds:>5.0f} s  {label}{detail}"

    def _write_report(self, suite: str) -> None:
        lines = read(self.settings.lines)
        write_report(lines, suite, self.settings.lines.parent / f"gpu-{suite}.xml")

    def copy_traces(self) -> None:
        """Copy the timelines that the benches recorded to the results."""
        for number, path in enumerate(sorted(self.settings.bench_files.glob("*" + TRACE))):
            if number < MOST_TRACES and path.stat().st_size <= MOST_BYTES:
                shutil.copyfile(path, self.settings.lines.parent / path.name)
            else:
                self.write(f"the timeline {path} is not copied to the results\n".encode())

    def print_summary(self) -> None:
        """Print a line per part, and the command that goes on from here."""
        settings, budget = self.settings, self.budget
        dry = " DRY=1" if settings.dry else ""
        lines = [f"\nmake gpu{dry}, {budget.used_s:.0f} s, results in {settings.results}"]
        for name in self._names:
            lines.append(f"  {name:<24} {self._ends.get(name, '        not started')}")
        is_unfinished = not all(end.endswith((" ok", " ok in an earlier run")) for end in self._ends.values())
        is_unfinished |= len(self._ends) < len(self._names)
        if is_unfinished and settings.budget_s is not None and not budget.allows():
            state = f"{self._num_failed} failed" if self._num_failed else "nothing failed"
            lines.append(f"BUDGET={settings.budget_s:g} ended the run; {state}.")
        if is_unfinished:
            lines.append(f"To go on: {settings.command_to_resume()}")
        self.write(("\n".join(lines) + "\n").encode())

    def write(self, text: bytes) -> None:
        """Print a text, and add it to the log."""
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        self._log.write(text)


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
