"""Other tools that measure a call: do_bench and the profiler, both with fake results; no GPU is needed."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from vitcache.bench.claims import bench_placement
from vitcache.bench.harness import cross_check
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer

CPU = torch.device("cpu")


def event(name: str, begin: float, end: float, device: Any = DeviceType.CUDA) -> SimpleNamespace:
    interval = SimpleNamespace(elapsed_us=lambda: end - begin)
    return SimpleNamespace(name=name, device_type=device, time_range=interval)


def test_do_bench_us_converts_the_median_and_the_quantiles(monkeypatch: pytest.MonkeyPatch) -> None:
    testing = pytest.importorskip("triton.testing")
    assert "quantiles" in inspect.signature(testing.do_bench).parameters

    def fake(function: Any, quantiles: list[float]) -> list[float]:
        function()
        assert quantiles == [0.5, 0.2, 0.8]
        return [0.16, 0.15, 0.18]

    calls: list[int] = []
    monkeypatch.setattr(testing, "do_bench", fake)
    measured = cross_check.do_bench_us(lambda: calls.append(1), Timer(CPU, 3))
    assert measured == Sample(160.0, 150.0, 180.0)
    assert calls == [1]


def test_kernel_us_returns_the_placement_kernels_of_the_device_alone() -> None:
    events = [
        event("aten::zero_", 0, 90, DeviceType.CPU),
        event("vectorized_elementwise_kernel", 0, 90),
        event("embed_rows_kernel", 90, 250),
        event("embed_rows_kernel", 0, 500, DeviceType.CPU),
        event("scatter_rows_kernel", 300, 461),
    ]
    assert cross_check.kernel_us(events, 2) == [160, 161]
    with pytest.raises(RuntimeError, match="expected 3 placement kernels in the profile, got 2"):
        cross_check.kernel_us(events, 3)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_profiler_us_without_a_gpu_calls_the_function_and_finds_no_kernel() -> None:
    calls: list[int] = []
    with pytest.raises(RuntimeError, match="expected 3 placement kernels in the profile, got 0"):
        cross_check.profiler_us(lambda: calls.append(1), Timer(CPU, 3))
    assert len(calls) == 3


def test_profiler_us_summarizes_the_kernels_of_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeProfile:
        def __init__(self, **options: Any) -> None:
            self.kernels: list[Any] = []

        def __enter__(self) -> FakeProfile:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def events(self) -> list[Any]:
            return [event("embed_rows_kernel", 0, number) for number in (3, 1, 2)]

    monkeypatch.setattr(cross_check, "profile", FakeProfile)
    assert cross_check.profiler_us(lambda: None, Timer(CPU, 3)).value == 2


@pytest.mark.parametrize(
    ("other_us", "meets"), [(154.0, True), (166.5, True), (153.0, False), (168.0, False)]
)
def test_add_cross_checks_judges_the_deviation_in_both_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_us: float, meets: bool
) -> None:
    measures = dict.fromkeys(cross_check.MEASURES, lambda function, timer: Sample.of([other_us]))
    monkeypatch.setattr(cross_check, "MEASURES", measures)
    recorder = Recorder("placement", tmp_path, CPU)
    cross_check.add_cross_checks(
        "32x880", "vitcache", lambda: None, Sample.of([160.0]), recorder, Timer(CPU, 3)
    )
    assert [(row["contender"], row["metric"]) for row in recorder.rows] == [
        (f"vitcache, {name}", metric)
        for name in ("do_bench", "profiler")
        for metric in ("device_us", "off_timer_us")
    ]
    times, deviations = recorder.rows[::2], recorder.rows[1::2]
    assert {(row["ratio_to"], row["meets_target"]) for row in times} == {("vitcache", None)}
    assert {(row["target"], row["meets_target"]) for row in deviations} == {(0.03, meets)}


def test_placement_bench_cross_checks_one_large_case() -> None:
    [case] = [case for case in bench_placement.CASES["full"] if case.name == bench_placement.CROSS_CHECKED]
    assert case.is_large


def test_tool_that_fails_costs_no_other_result_of_its_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no permission to profile")

    built = torch.zeros(2), None
    names = ("vitcache", "vllm", "transformers")
    monkeypatch.setattr(bench_placement, "add_cross_checks", fail)
    monkeypatch.setattr(bench_placement, "CONTENDERS", dict.fromkeys(names, lambda scene: built))
    monkeypatch.setattr(bench_placement, "Scene", lambda case, device: SimpleNamespace(dtype=torch.bfloat16))
    monkeypatch.setattr(bench_placement, "slice_loop", lambda scene: built)
    monkeypatch.setattr(bench_placement, "time_copy", lambda moved_bytes, timer: Sample.of([2.0]))
    timer = SimpleNamespace(
        device=SimpleNamespace(type="cuda"),
        device_us=lambda call: Sample.of([2.0]),
        host_us=lambda call: Sample.of([2.0]),
        peak_bytes=lambda call: 0,
    )
    recorder = Recorder("placement", tmp_path, CPU)
    [case] = [case for case in bench_placement.CASES["full"] if case.name == bench_placement.CROSS_CHECKED]
    with pytest.raises(RuntimeError, match="no permission"):
        list(bench_placement.run_case(case, recorder, timer))
    found = {row["contender"] for row in recorder.rows}
    assert found == {"copy", *names, "ahead of vllm", "ahead of transformers"}
