"""The bench of the merge in the stock forward: its counts, and that a wrong contender gets no number."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vitcache
from vitcache.bench import run
from vitcache.bench.claims import bench_merge
from vitcache.bench.claims.merge_scene import TEXT_TOKENS, MergeCase, Merged, MergeScene

pytest.importorskip("transformers")

CONTENDERS = ["stock", "off", "placed", "limit"]
SMOKE = {case.name: case for case in bench_merge.CASES["smoke"]}


def run_smoke(directory: Path) -> tuple[int, list[dict[str, Any]]]:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    arguments = ["--bench", "merge", "--cases", "smoke", "--out", str(directory)]
    code = run.run(parser.parse_args(arguments))
    return code, [row for path in directory.glob("*.json") for row in json.loads(path.read_text())]


def row_bytes(case: MergeCase) -> tuple[int, int]:
    """Return the bytes of all tokens in `inputs_embeds`, and of the image rows in it."""
    rows = case.images * case.grid[1] * case.grid[2]
    bytes_per_row = case.hidden * torch.bfloat16.itemsize
    return (rows + case.images * 2 * TEXT_TOKENS) * bytes_per_row, rows * bytes_per_row


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    code, rows = run_smoke(tmp_path_factory.mktemp("merge"))
    assert code == 0
    return rows


def test_merge_bench_measures_each_contender_of_each_case(results: list[dict[str, Any]]) -> None:
    units = {"merge_ms": "ms", "moved_bytes": "B", "extra_bytes": "B"}
    assert [(row["case"], row["contender"], row["metric"], row["unit"]) for row in results] == [
        (case, name, metric, unit) for case in SMOKE for name in CONTENDERS for metric, unit in units.items()
    ]
    assert all(row["target"] is None for row in results)
    times = {(row["case"], row["contender"]): row for row in results if row["metric"] == "merge_ms"}
    for (case, _), row in times.items():
        assert row["ratio"] == pytest.approx(row["value"] / times[case, "limit"]["value"], rel=1e-3)
        assert row["p20"] <= row["value"] <= row["p80"]


def test_merge_bench_placed_moves_each_row_once_and_needs_no_extra_rows(
    results: list[dict[str, Any]],
) -> None:
    values = {(row["case"], row["contender"], row["metric"]): row["value"] for row in results}
    for name, case in SMOKE.items():
        tokens, images = row_bytes(case)
        once = 2 * tokens + 2 * images * (1 + case.levels)
        assert values[name, "limit", "moved_bytes"] == once
        assert values[name, "placed", "moved_bytes"] == once
        assert values[name, "stock", "moved_bytes"] == once + 2 * tokens + 2 * images
        assert values[name, "limit", "extra_bytes"] == 0
        assert values[name, "placed", "extra_bytes"] < images
        assert values[name, "stock", "extra_bytes"] > images


def test_merge_bench_contender_with_other_rows_gets_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stock = MergeScene._copy

    def wrong(scene: MergeScene) -> Merged:
        inputs_embeds, *levels = stock(scene)
        inputs_embeds[0, TEXT_TOKENS] += 1
        return inputs_embeds, *levels

    monkeypatch.setattr(MergeScene, "_copy", wrong)
    assert run_smoke(tmp_path) == (1, [])
    assert "limit merged the rows unlike the stock model" in capsys.readouterr().err


def test_merge_bench_calls_that_are_not_placed_get_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attach = vitcache.attach
    monkeypatch.setattr(
        vitcache, "attach", lambda *args, **options: attach(*args, **options | {"placement": "off"})
    )
    assert run_smoke(tmp_path) == (1, [])
    assert "calls of placed, got {'encoded': 0" in capsys.readouterr().err


def test_merge_bench_draw_has_a_panel_per_metric_with_all_bars(results: list[dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib")
    panels = bench_merge.draw(results).axes
    assert [axes.get_xlabel() for axes in panels] == [
        "milliseconds",
        "GB read, written",
        "MB above the result",
    ]
    for axes in panels:
        assert len(axes.patches) == len(CONTENDERS) * len(SMOKE)


def test_merge_bench_full_cases_are_8_and_32_images_with_and_without_levels() -> None:
    cases = [(case.images, case.levels, case.hidden, case.grid) for case in bench_merge.CASES["full"]]
    assert cases == [(images, levels, 4096, (1, 22, 40)) for images in (8, 32) for levels in (0, 3)]
