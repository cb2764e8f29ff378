"""`python -m vitcache bench`: which benches and cases run on which kind of device."""

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
    assert set(run.BENCHES) - set(on_gpu) == {"attach", "cache", "cpu", "decode", "pages", "policy"}


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
