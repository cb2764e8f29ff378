"""One run: check, build, run the parts within the budget, and print a summary."""

import shutil
from datetime import UTC, datetime

from gpu_runner import facts, outcomes
from gpu_runner.budget import Budget
from gpu_runner.outcomes import CUT, FAILED, OK, SKIPPED
from gpu_runner.parts import Command, Part, bench_names, check_only, in_order, make_part
from gpu_runner.processes import Ended, run
from gpu_runner.results_folder import ResultsFolder
from gpu_runner.settings import Settings

NO_TESTS = 5  # exit code of pytest if it selects no test
NOT_ON_PATH = 127  # as shells report it
NO_TIME = " " * 7  # in the summary, in place of the seconds of a part


class GpuRun:
    """One run with its settings and its budget; see `run`."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        self.settings, self.budget = settings, budget
        self._env = settings.environment()
        self._names: list[str] = []
        self._ends: dict[str, str] = {}  # by part: its seconds and its outcome, in words
        self._unfinished: set[str] = set()
        self._num_failed = self._num_skipped = 0

    def run(self) -> int:
        """Run the chosen parts; return the exit code: 1 if a part failed, else 0.

        Raises
        ------
        ValueError
            If ONLY has an unknown part, or the earlier results do not fit this run.
        NotReady
            If the interpreter, the device or the package is not usable.
        OutOfTime
            If the budget ends the run before its first part.
        """
        settings = self.settings
        check_only(settings.only, bench_names(settings.root))
        machine = facts.ask(settings, self.budget.left_s)
        installed = {name: machine.pop(name) for name in ("has_xdist", "why_no_vllm", "why_no_sglang")}
        self._env["VITCACHE_COMMIT"] = machine["commit"]
        self.folder = ResultsFolder(settings, machine)
        if settings.needs_build:
            facts.build(settings, self.folder.write, self.budget.left_s)
        self._names = list(dict.fromkeys(settings.only or self._all_names()))
        finished = outcomes.finished_parts(self.folder.lines()) if settings.resume else set()
        self.folder.add("run", **machine, utc=_utc(), budget_s=settings.budget_s, parts=self._names)
        shutil.rmtree(settings.bench_files, ignore_errors=True)
        self._unfinished = {name for name in self._names if name not in finished}
        try:
            for name in self._names:
                if name in finished:
                    self._ends[name] = f"{NO_TIME}  ok in an earlier run"
                elif self.budget.allows():
                    self.run_part(make_part(name, settings, **installed))
        finally:
            self.folder.copy_traces()
            self.print_summary()
        return 1 if self._num_failed else 0

    def _all_names(self) -> list[str]:
        benches = facts.list_benches(self.settings, self.budget.left_s)
        return in_order(benches, dry=self.settings.dry)

    def run_part(self, part: Part) -> None:
        """Run the commands of a part, and record its outcome."""
        if part.skipped is not None:
            self._skip(part.name, part.skipped)
            return
        self.folder.write(f"\n{part.name}\n".encode())
        self._ends[part.name] = f"{NO_TIME}  interrupted"  # until it ends
        begin = self.budget.clock()
        ends: list[Ended] = []
        for command in part.commands:
            left_s = min(self.budget.left_s, part.limit_s - (self.budget.clock() - begin))
            try:
                ends.append(self.run_command(command, left_s) if left_s > 0 else Ended(0, True))
            finally:
                if command.suite:
                    self.folder.write_report(command.suite)
        suites = [command.suite for command in part.commands if command.suite]
        self._end_part(part.name, self.budget.clock() - begin, ends, suites)

    def _skip(self, name: str, reason: str) -> None:
        """Record that this machine cannot run a part. A resumed run asks the machine again."""
        self._num_skipped += 1
        self.folder.add("part", part=name, outcome=SKIPPED, seconds=0.0, utc=_utc(), reason=reason)
        self._ends[name] = f"{NO_TIME}  skipped: {reason}"
        self._unfinished.remove(name)

    def run_command(self, command: Command, left_s: float) -> Ended:
        """Run one command; its output is printed and added to the log."""
        if shutil.which(command.arguments[0]) is None:
            self.folder.write(f"{command.arguments[0]} is not on PATH\n".encode())
            return Ended(NOT_ON_PATH, False)
        return run(
            command.arguments,
            env={**self._env, **command.env},
            directory=self.settings.root,
            write=self.folder.write,
            limit_s=left_s,
            grace_s=self.budget.grace_s,
            clock=self.budget.clock,
        )

    def _end_part(self, name: str, seconds: float, ends: list[Ended], suites: list[str]) -> None:
        has_failure, text = outcomes.describe(self.folder.lines(), name, suites)
        codes = [end.code for end in ends if not end.is_cut]
        if self.settings.resume and not has_failure:
            # If all tests were finished in the earlier run, pytest finds no test to run.
            codes = [0 if suites and code == NO_TESTS else code for code in codes]
        failed = [code for code in codes if code]
        is_cut = any(end.is_cut for end in ends)
        outcome = FAILED if failed or (has_failure and not is_cut) else CUT if is_cut else OK
        self._num_failed += bool(failed or has_failure)
        self.folder.add("part", part=name, outcome=outcome, seconds=round(seconds, 1), utc=_utc())
        label = {OK: "ok", FAILED: f"FAILED ({(failed or [1])[0]})  {text}", CUT: f"CUT  {text}"}[outcome]
        self._ends[name] = f"{seconds:>5.0f} s  {label}"
        if outcome == OK:
            self._unfinished.remove(name)

    def print_summary(self) -> None:
        """Print a line per part, and the command that continues from here."""
        settings, budget = self.settings, self.budget
        dry = " DRY=1" if settings.dry else ""
        lines = [f"\nmake gpu{dry}, {budget.used_s:.0f} s, results in {settings.results}"]
        for name in self._names:
            lines.append(f"  {name:<24} {self._ends.get(name, f'{NO_TIME}  not started')}")
        if self._num_skipped:
            lines.append(f"Skipped parts: {self._num_skipped}")
        if self._unfinished and settings.budget_s is not None and not budget.allows():
            state = f"{self._num_failed} parts have failures" if self._num_failed else "nothing failed"
            lines.append(f"BUDGET={settings.budget_s:g} ended the run; {state}.")
        if self._unfinished:
            lines.append(f"To continue: {settings.command_to_resume()}")
        self.folder.write(("\n".join(lines) + "\n").encode())


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
