"""Runs of fake parts: the budget ends them, a later run continues, and the summary says both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu_runner import facts, gpu_run
from gpu_runner.budget import Budget
from gpu_runner.gpu_run import GpuRun
from gpu_runner.lines import ROOT, read
from gpu_runner.parts import Command, Part, make_part
from gpu_runner.settings import VENV_PYTHON, Settings

FACTS = {"device": "NVIDIA H200", "torch": "2.11.0", "commit": "abc"}
IMPORTS = {"PYTHONPATH": str(ROOT / "tests/support")}
# Appends lines to the results: the cases of a bench, until one case takes longer than the budget.
BENCH = """
import sys, time
from pathlib import Path
from gpu_runner.lines import ResultLines, cases_of, read
path, bench, slow, failed = Path(sys.argv[1]), *sys.argv[2:]
lines = ResultLines(path)
done = [case.name for case in cases_of(read(path)).get(bench, []) if case.state == "finished"]
for number, case in enumerate(("a", "b", "c"), 1):
    if case not in done:
        lines.add("case", bench=bench, case=case, state="begun", number=number, count=3)
        lines.add("row", bench=bench, value=case)
        print(bench, case, flush=True)
        time.sleep(60 * (case == slow))
        lines.add("case", bench=bench, case=case, state="failed" if case == failed else "finished")
raise SystemExit(failed in ("a", "b", "c"))
"""


class Runner:
    """Runs fake benches in a folder. `slow` and `failed` name the case of each bench that is one."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.slow: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.facts: dict[str, Any] = dict(FACTS)
        self.installed: dict[str, Any] = {"has_xdist": False, "why_no_vllm": None, "why_no_sglang": None}
        monkeypatch.setattr(facts, "ask", lambda settings, limit_s: {**self.facts, **self.installed})
        benches = {"placement": True, "ring": True, "cache": False}
        monkeypatch.setattr(facts, "list_benches", lambda settings, limit_s: benches)
        monkeypatch.setattr(gpu_run, "bench_names", lambda root: sorted(benches))
        monkeypatch.setattr(gpu_run, "make_part", self.make_part)

    def make_part(self, name: str, settings: Settings, **installed: Any) -> Part:
        if name not in ("placement", "ring", "cache"):
            return Part(name, [])
        arguments = [str(settings.lines), name, self.slow.get(name, "-"), self.failed.get(name, "-")]
        return Part(name, [Command([sys.executable, "-c", BENCH, *arguments], IMPORTS)])

    def run(self, clock: Callable[[], float] = time.monotonic, **options: Any) -> int:
        settings = Settings(VENV_PYTHON, **{"results": Path("out"), "root": self.root, **options})
        return GpuRun(settings, Budget(settings.budget_s, clock=clock)).run()

    def lines(self, kind: str, folder: str = "out") -> list[dict[str, Any]]:
        return [line for line in read(self.root / folder / "results.jsonl") if line["kind"] == kind]


class LateClock:
    """A clock at 0 until a file has a line of a case `b`. Then a part has no time left in a run of 60 s."""

    def __init__(self, file: Path) -> None:
        self._file, self._begin = file, 0.0

    def __call__(self) -> float:
        if not self._begin and self._file.exists() and '"b"' in self._file.read_text():
            self._begin = time.monotonic()
        return 56 + time.monotonic() - self._begin if self._begin else 0.0


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    return Runner(tmp_path, monkeypatch)


def test_run_without_a_budget_runs_all_parts_in_order(runner: Runner, capfdbinary: Any) -> None:
    assert runner.run() == 0
    assert [line["part"] for line in runner.lines("part")] == [
        *("probe", "tests", "placement", "ring", "sanitize")
    ]
    output = capfdbinary.readouterr().out.decode()
    assert "  placement                    0 s  ok\n" in output
    assert "To continue" not in output
    assert (runner.root / "out/gpu.log").read_bytes().decode() == output
    assert [line["commit"] for line in runner.lines("run")] == ["abc"]


def test_budget_cuts_a_part_keeps_its_rows_and_names_the_rest(runner: Runner, capfdbinary: Any) -> None:
    runner.slow["placement"] = "b"
    clock = LateClock(runner.root / "out/results.jsonl")
    assert runner.run(clock, budget_s=60) == 0
    assert clock() < 60
    output = capfdbinary.readouterr().out.decode()
    assert "CUT  1 of 3 cases: a; 2 rows" in output
    assert f"  {'ring':<24}          not started" in output
    assert "BUDGET=60 ended the run; nothing failed.\nTo continue: make gpu RESUME=out BUDGET=60\n" in output
    assert [row["value"] for row in runner.lines("row")] == ["a", "b"]
    outcomes = {line["part"]: line["outcome"] for line in runner.lines("part")}
    assert outcomes == {"probe": "ok", "tests": "ok", "placement": "cut"}


def test_resumed_run_repeats_only_parts_and_cases_that_are_not_finished(
    runner: Runner, capfdbinary: Any
) -> None:
    runner.slow["placement"] = "b"
    runner.run(LateClock(runner.root / "out/results.jsonl"), budget_s=60)
    capfdbinary.readouterr()
    runner.slow.clear()
    assert runner.run(resume=Path("out")) == 0
    output = capfdbinary.readouterr().out.decode()
    assert f"  {'tests':<24}          ok in an earlier run" in output
    assert [row["value"] for row in runner.lines("row")] == ["a", "b", "b", "c", "a", "b", "c"]
    assert {line["part"]: line["outcome"] for line in runner.lines("part")} == dict.fromkeys(
        ("probe", "tests", "placement", "ring", "sanitize"), "ok"
    )
    assert runner.run(resume=Path("out")) == 0
    assert len(runner.lines("row")) == 7


def test_resumed_run_in_another_folder_has_the_results_of_both(runner: Runner) -> None:
    runner.run(only=("placement",))
    (runner.root / "out/notes.md").write_text("not a result")
    assert runner.run(results=Path("second"), resume=Path("out"), only=("ring",)) == 0
    assert not (runner.root / "second/notes.md").exists()
    assert [line["part"] for line in runner.lines("part", "second")] == ["placement", "ring"]
    assert [line["part"] for line in runner.lines("part")] == ["placement"]


def test_failed_part_fails_the_run_and_is_repeated_by_a_resumed_run(runner: Runner, capfdbinary: Any) -> None:
    runner.failed["ring"] = "b"
    assert runner.run() == 1
    output = capfdbinary.readouterr().out.decode()
    assert "FAILED (1)  2 of 3 cases: a, c; 3 rows; failed: b" in output
    assert "To continue: make gpu RESUME=out\n" in output
    runner.failed.clear()
    assert runner.run(resume=Path("out"), only=("ring",)) == 0
    assert runner.lines("part")[-1] | {"utc": ""} == {
        "kind": "part",
        "part": "ring",
        "outcome": "ok",
        "utc": "",
        "seconds": runner.lines("part")[-1]["seconds"],
    }


def test_part_that_is_cut_after_a_failure_fails_the_run(runner: Runner, capfdbinary: Any) -> None:
    runner.failed["placement"], runner.slow["placement"] = "a", "b"
    assert runner.run(LateClock(runner.root / "out/results.jsonl"), budget_s=60) == 1
    assert "BUDGET=60 ended the run; 1 parts have failures." in capfdbinary.readouterr().out.decode()


def test_results_of_another_commit_are_refused_before_anything_is_written(runner: Runner) -> None:
    runner.run(only=("ring",))
    before = (runner.root / "out/results.jsonl").read_bytes()
    runner.facts["commit"] = "def"
    with pytest.raises(ValueError, match="have the commit abc, this run has def"):
        runner.run(resume=Path("out"))
    with pytest.raises(ValueError, match="have the commit abc, this run has def"):
        runner.run(resume=Path("out"), results=Path("second"))
    assert (runner.root / "out/results.jsonl").read_bytes() == before
    assert not (runner.root / "second").exists()


def test_results_of_a_gpu_are_not_overwritten_but_those_of_a_dry_run_are(runner: Runner) -> None:
    runner.run(only=("ring",))
    with pytest.raises(ValueError, match="RESULTS=out has results: RESUME=out continues"):
        runner.run(only=("ring",))
    runner.run(results=Path("second"), only=("ring",))
    with pytest.raises(ValueError, match="RESULTS=second has results"):
        runner.run(results=Path("second"), resume=Path("out"))
    assert runner.run(dry=True, only=("ring",)) == 0
    assert len(runner.lines("part")) == 1


def test_resume_of_a_folder_without_results_is_refused(runner: Runner) -> None:
    with pytest.raises(ValueError, match=r"RESUME=out has no file results\.jsonl"):
        runner.run(resume=Path("out"))


def test_only_with_an_unknown_part_is_refused_before_the_machine_is_asked(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "ask", None)
    with pytest.raises(ValueError, match=r"must be one of: .* got hits"):
        runner.run(only=("ring", "hits"))


def test_command_that_is_not_on_path_fails_its_part_by_name(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    part = Part("sanitize", [Command(["compute-sanitizer-of-nowhere"], {}, "memcheck")])
    monkeypatch.setattr(gpu_run, "make_part", lambda *arguments, **options: part)
    assert runner.run(only=("sanitize",)) == 1
    output = capfdbinary.readouterr().out.decode()
    assert "compute-sanitizer-of-nowhere is not on PATH" in output
    assert "FAILED (127)" in output


def test_part_that_the_machine_cannot_run_is_skipped_with_its_reason_and_counted(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    runner.installed["why_no_vllm"] = "python3 has no vLLM"
    monkeypatch.setattr(gpu_run, "make_part", make_part)
    monkeypatch.setattr(gpu_run, "bench_names", lambda root: ["engines"])
    assert runner.run(only=("engines",)) == 0
    output = capfdbinary.readouterr().out.decode()
    assert f"  {'engines':<24}          skipped: python3 has no vLLM\nSkipped parts: 1\n" in output
    assert "To continue" not in output
    [line] = runner.lines("part")
    assert (line["outcome"], line["reason"]) == ("skipped", "python3 has no vLLM")
    assert runner.run(resume=Path("out"), only=("engines",)) == 0  # it is asked again
    assert len(runner.lines("part")) == 2


def test_results_have_at_most_8_files_with_three_timelines(runner: Runner) -> None:
    traces = runner.root / "build/gpu-benches"
    original = runner.make_part

    def record(name: str, settings: Settings, **installed: Any) -> Part:
        traces.mkdir(parents=True, exist_ok=True)
        for number in range(2):
            (traces / f"{name}-{number}-timeline.json.gz").write_bytes(b"trace")
        (traces / f"{name}-nvidia-h200.json").write_text("[]")
        return original(name, settings, **installed)

    gpu_run.make_part = record  # the fixture restores it
    runner.run()
    names = sorted(path.name for path in (runner.root / "out").iterdir())
    assert [name for name in names if not name.endswith("timeline.json.gz")] == ["gpu.log", "results.jsonl"]
    assert len(names) == 5
    assert b"is not copied to the results" in (runner.root / "out/gpu.log").read_bytes()


def test_interrupted_run_says_which_part_was_interrupted(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_run, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.run(only=("ring", "placement"))
    output = capfdbinary.readouterr().out.decode()
    assert f"  {'ring':<24}          interrupted" in output
    assert f"  {'placement':<24}          not started" in output
    assert 'To continue: make gpu RESUME=out ONLY="ring placement"' in output
