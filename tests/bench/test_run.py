"""`vitcache bench`: which benches and cases run on which kind of device."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitcache.bench import run
from vitcache.bench.claims import bench_hits, bench_step
from vitcache.bench.claims.cold_steps import ColdCase
from vitcache.bench.claims.host_steps import HostCase
from vitcache.bench.harness.registry import CPU, GPU, cases_for
from vitcache.bench.harness.timing import Timer


def run_bench(directory: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return run.run(parser.parse_args(["--out", str(directory), *arguments]))


def test_cases_for_a_device_are_those_of_its_type_and_those_of_any() -> None:
    on_cpu, on_gpu, anywhere = (
        SimpleNamespace(RUNS_ON=CPU),
        SimpleNamespace(RUNS_ON=GPU),
        SimpleNamespace(),
    )
    cases = [on_cpu, on_gpu, anywhere]
    assert cases_for(cases, "full", CPU) == [on_cpu, anywhere]
    assert cases_for(cases, "full", GPU) == cases_for(cases, "smoke", GPU) == [on_gpu, anywhere]
    assert cases_for(cases, "smoke", CPU) == cases


def test_cases_of_the_bench_step_are_host_times_or_cold_steps() -> None:
    for size in ("full", "smoke"):
        on_gpu = cases_for(bench_step.CASES[size], size, GPU)
        assert {type(case) for case in on_gpu} == {ColdCase}
    on_cpu = cases_for(bench_step.CASES["full"], "full", CPU)
    assert all(isinstance(case, HostCase) for case in on_cpu)
    assert cases_for(bench_step.CASES["smoke"], "smoke", CPU) == bench_step.CASES["smoke"]
    assert cases_for(bench_hits.CASES["full"], "full", CPU) == []


def test_names_for_a_gpu_leave_out_the_benches_of_the_cpu() -> None:
    assert run.names_for(CPU) == sorted(run.BENCHES)
    on_gpu = run.names_for(GPU)
    assert {"placement", "scatter", "ring", "step", "hits", "multiturn", "blocks", "keys", "limit"} <= set(
        on_gpu
    )
    assert set(run.BENCHES) - set(on_gpu) == {
        *("attach", "cache", "changes", "cpu", "decode", "fleet", "mooncake", "pages", "policy", "tiers")
    }


def test_bench_without_a_case_for_the_device_says_so_and_writes_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(tmp_path, "--bench", "hits", "--cases", "full") == 0
    assert "hits: no case of the size full runs on a device of the type cpu" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_a_gpu_runs_its_benches_and_names_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def fake_bench(name: str, **options: Any) -> SimpleNamespace:
        case = SimpleNamespace(name="case")

        def run_case(*_: object) -> list[str]:
            ran.append(name)
            return []

        return SimpleNamespace(CASES={"full": [case]}, run_case=run_case, **options)

    benches = {"ring": fake_bench("ring"), "cache": fake_bench("cache", DEVICE=torch.device("cpu"))}
    monkeypatch.setattr(run, "BENCHES", benches)
    monkeypatch.setattr(run, "names_for", lambda device_type, names_for=run.names_for: names_for(GPU))
    assert run_bench(tmp_path, "--cases", "full") == 0
    assert ran == ["ring"]
    assert "cache: left out, it measures the CPU; choose it with --bench cache" in capsys.readouterr().out
    assert run_bench(tmp_path, "--cases", "full", "--bench", "cache") == 0
    assert ran == ["ring", "cache"]


def result(contender: str, **fields: Any) -> dict[str, Any]:
    row = {"case": "9x880", "contender": contender, "metric": "gpu_us", "unit": "us", "value": 12345.678}
    row |= {"p20": 1.5, "p80": 2.5, "ratio": 0.25, "ratio_to": "limit", "meets_target": None}
    return row | fields


def printed(rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], judges: bool = True) -> list[str]:
    """Return the lines of the table of a bench's rows."""
    recorder = SimpleNamespace(bench="b", machine={"device": "cpu x"}, path="b.json", rows=rows)
    run.print_table(recorder, judges_targets=judges)
    return capsys.readouterr().out.splitlines()


def test_table_groups_rows_by_case_metric_and_reference(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        result("a"),
        result("a", metric="host_us", ratio=None, ratio_to=None),
        result("b", meets_target=True),
    ]
    lines = printed(rows, capsys)
    assert [line for line in lines if line.startswith("9x880")] == [
        "9x880: gpu_us in us; ratio to limit",
        "9x880: host_us in us",
    ]
    assert [line.split() for line in lines if "12346" in line] == [
        ["a", "12346", "1.5", "2.5", "0.25"],
        ["b", "12346", "1.5", "2.5", "0.25", "meets"],
        ["a", "12346", "1.5", "2.5"],
    ]


def test_table_marks_missed_targets_and_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed([result("a", meets_target=False), result("b", meets_target=True), result("c")], capsys)
    assert [line.split()[0] for line in lines if line.endswith("MISSES")] == ["a"]
    assert lines[-1] == "3 results; 2 have a target, 1 of these miss it"


def test_table_of_smoke_sizes_judges_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed([result("a", meets_target=False), result("b", meets_target=True)], capsys, judges=False)
    assert not any(line.endswith(("MISSES", "meets")) for line in lines)
    assert lines[-1] == "2 results of smoke sizes; targets are for full sizes: --cases full"


def test_table_of_long_names_has_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [result("the merge of an engine " * 5, case="a case with many words " * 6, ratio_to="a word " * 9)]
    lines = printed(rows, capsys)
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).count("engine") == 5


def test_bench_shows_the_case_its_step_and_the_round_of_measurements() -> None:
    shown: list[tuple[str, int, int]] = []
    progress = SimpleNamespace(
        show=lambda text, done, total, *, is_frequent: shown.append((text, done, total))
    )
    case = run.CaseProgress(progress, 2)
    case.begin("big", 2)
    case.show_step("keys")
    timer = Timer(torch.device("cpu"), 1, on_round=case.show_round).with_repeats(2)
    timer.rounds_us({"a call": lambda: None})
    texts = [text for text, *_ in shown]
    assert texts == ["2/2 big: begins", "2/2 big: keys", *(f"2/2 big: keys ({n}/4)" for n in (1, 2, 3, 4))]
    assert {(done, total) for _, done, total in shown} == {(1, 2)}


def test_bench_whose_case_raises_prints_the_error_and_returns_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_case(*_: object) -> list[str]:
        raise ValueError("wrong rows")

    bench = SimpleNamespace(CASES={"smoke": [SimpleNamespace(name="case")]}, run_case=run_case)
    monkeypatch.setattr(run, "BENCHES", {"ring": bench})
    monkeypatch.setattr(run, "names_for", lambda device_type: ["ring"])
    assert run_bench(tmp_path, "--cases", "smoke") == 1
    assert capsys.readouterr().err == "ring 1/1 case failed: ValueError: wrong rows\n"


def test_bench_whose_package_is_missing_names_it_as_pip_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "missing_requirement", lambda name: "skimage")
    assert run_bench(tmp_path, "--bench", "ring") == 1
    expected = "vitcache bench: ring needs scikit-image: pip install 'vitcache[demo]'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("option", ["--out", "--lines"])
def test_bench_whose_results_cannot_be_written_prints_one_line_and_exits_with_2(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" if option == "--out" else tmp_path / "file/lines.jsonl"
    assert run_bench(tmp_path, "--bench", "policy", "--cases", "smoke", option, str(place)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vitcache bench: {tmp_path / 'file'}: cannot be written: ")
