"""The cold cases of the bench `step`: their contenders, limits and timeline; a wrong step gets no number."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from vitcache import VisionPipeline
from vitcache.bench import plot, run
from vitcache.bench.claims import bench_step, cold_steps
from vitcache.bench.harness import timeline
from vitcache.pipeline.feature_mover import RING_BYTES
from vitcache.pipeline.vision_pipeline import MAX_ROWS_PER_ENCODE

pytestmark = pytest.mark.transformers


def run_cold_cases(directory: Path) -> tuple[int, list[Path]]:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    cases = [case for case in bench_step.CASES["smoke"] if isinstance(case, cold_steps.ColdCase)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bench_step.CASES, "smoke", cases)
        arguments = ["--bench", "step", "--cases", "smoke", "--out", str(directory)]
        return run.run(parser.parse_args(arguments)), list(directory.glob("step-*.json"))


@pytest.fixture(scope="module")
def result_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    code, [path] = run_cold_cases(tmp_path_factory.mktemp("step"))
    assert code == 0
    return path


def test_step_bench_compares_cold_steps_with_the_tower_and_with_a_step_without_cache(
    result_file: Path,
) -> None:
    rows = json.loads(result_file.read_text())
    against = {row["contender"]: row["ratio_to"] for row in rows if row["metric"] == "step_us"}
    assert against["vitcache"] in ("tower", "tower, one call")
    assert against["vitcache, features on device"] == "no cache, features on device"
    assert {".to, one call", "vitcache, keys computed", "vitcache, bfloat16 features"} <= set(against)


def test_plot_result_file_and_trace_of_cold_steps_give_png_files(result_file: Path) -> None:
    pytest.importorskip("matplotlib")
    [trace] = result_file.parent.glob(f"*{timeline.SUFFIX}")
    lanes = timeline.read_lanes(trace)
    # Three images: three copies, and two calls of the tower, the first for two images.
    if not torch.cuda.is_available():
        assert [len(lane) for lane in lanes.values()] == [3, 2, 1]
    assert all(took > 0 for lane in lanes.values() for _, took in lane)
    for file in (result_file, trace):
        picture = plot.plot(file)
        assert picture.parent == result_file.parent
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert (result_file.parent / f"{result_file.stem}-timeline.png").exists()


def test_read_lanes_trace_of_a_gpu_returns_copies_and_kernels_of_the_device(tmp_path: Path) -> None:
    events = [
        ("user_annotation", "step", 100, 50),
        ("user_annotation", "ViT", 101, 5),
        ("gpu_user_annotation", "ViT", 110, 20),
        ("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 105, 4),
        ("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 131, 1),
        ("kernel", "embed_rows_kernel", 135, 3),
        ("kernel", "gemm", 111, 3),
    ]
    trace = tmp_path / f"x{timeline.SUFFIX}"
    with gzip.open(trace, "wt") as file:
        fields = ("cat", "name", "ts", "dur")
        json.dump({"traceEvents": [{"ph": "X", **dict(zip(fields, e, strict=True))} for e in events]}, file)
    assert timeline.read_lanes(trace) == {"copies": [(5, 4)], "ViT": [(10, 20)], "placement": [(35, 3)]}


def test_step_bench_cold_step_with_wrong_rows_gets_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(VisionPipeline):
        def embed(self, *args: Any, **kwargs: Any) -> Any:
            result = super().embed(*args, **kwargs)
            result.inputs_embeds[20] = 0
            return result

    monkeypatch.setattr(cold_steps, "VisionPipeline", Wrong)
    assert run_cold_cases(tmp_path) == (1, [])
    assert "vitcache built wrong rows" in capsys.readouterr().err


def test_step_bench_full_size_measures_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipelines get no `max_rows_per_encode`, and the tower alone is called with as many images."""
    made: list[dict[str, Any]] = []

    class Recorded(VisionPipeline):
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append(options)
            super().__init__(*args, **options)

    [full] = [case for case in bench_step.CASES["full"] if isinstance(case, cold_steps.ColdCase)]
    assert full.max_rows is None
    calls: list[list[int]] = []
    tower_call = cold_steps.Tower.__call__

    def record_call(tower: Any, features: Any, items: Any) -> Any:
        calls[-1].append(len(items))
        return tower_call(tower, features, items)

    def record_contenders(case: Any, recorder: Any, timer: Any, contenders: Any) -> None:
        for name in ("tower", "vitcache"):
            calls.append([])
            contenders[name]()
        raise InterruptedError

    monkeypatch.setattr(cold_steps, "VisionPipeline", Recorded)
    monkeypatch.setattr(cold_steps.Tower, "__call__", record_call)
    monkeypatch.setattr(cold_steps, "add_cold", record_contenders)
    calls.append([])
    images = 3
    case = cold_steps.ColdCase("default", (1, 8, 8), images=images, size="tiny")
    timer = cold_steps.Timer(torch.device("cpu"), 1)
    with pytest.raises(InterruptedError):
        list(cold_steps.run_cold(case, None, timer))  # type: ignore[arg-type]
    assert made
    assert all("max_rows_per_encode" not in options for options in made)
    assert calls[-2:] == [[images]] * 2  # 48 rows are fewer than 4096
    assert (MAX_ROWS_PER_ENCODE, cold_steps.RING_BYTES) == (4096, RING_BYTES)
