"""The bench `changes`: its results have the schema, and a contender that misses a change gets no number."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from vitcache.adapters.session import Session
from vitcache.bench import plot, run
from vitcache.bench.claims import bench_changes
from vitcache.bench.claims.bench_changes import (
    CASES,
    CHECK,
    NATIVE,
    PYTHON,
    STEP,
    SUM,
    TAKE,
    VITCACHE,
    WATCHED,
)
from vitcache.bench.claims.changing_model import ChangingModel, VersionsInPython


def run_bench(directory: Path) -> tuple[int, list[dict[str, Any]]]:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    code = run.run(parser.parse_args(["--cases", "smoke", "--out", str(directory), "--bench", "changes"]))
    return code, [row for path in directory.glob("*.json") for row in json.loads(path.read_text())]


def test_changes_bench_measures_checks_changes_and_bytes(tmp_path: Path) -> None:
    code, rows = run_bench(tmp_path)
    assert code == 0
    found = {
        metric: {(row["case"], row["contender"]) for row in rows if row["metric"] == metric}
        for metric in ("check_us", "change_us", "step_us", "fingerprint_us")
    }
    plain, adapters, size = (case.name for case in CASES["smoke"])
    written, switched = bench_changes.CHANGED, bench_changes.SWITCHED
    assert found["check_us"] == {(c, n) for c in (plain, adapters) for n in (VITCACHE, NATIVE, PYTHON)}
    assert found["change_us"] == {(plain, written), (adapters, written), (adapters, switched)}
    assert found["step_us"] == {(c, n) for c in (plain, adapters) for n in (STEP, WATCHED)}
    assert found["fingerprint_us"] == {(size, name) for name in (CHECK, TAKE, SUM)}
    assert sum(map(len, found.values())) == len(rows)
    assert all(row["value"] > 0 and row["unit"] == "us" and row["target"] is None for row in rows)
    moved = {row["contender"]: row["bytes"] for row in rows if row["metric"] == "fingerprint_us"}
    assert moved[CHECK] == moved[TAKE] // 3 > 0


def test_changes_bench_targets_are_for_the_whole_check_of_weights_without_adapters() -> None:
    targets = {case.name: getattr(case, "target_us", None) for case in CASES["full"]}
    assert {name for name, target in targets.items() if target is not None} == {
        "400 tensors",
        "1,500 tensors",
    }
    assert targets["400 tensors"] == targets["1,500 tensors"] == 20.0


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (Session, "current_namespace", "vitcache is wrong"),
        (VersionsInPython, "is_current", "a check is wrong"),
    ],
)
def test_changes_bench_contender_that_misses_a_write_gets_no_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: type,
    name: str,
    words: str,
) -> None:
    answer = {"current_namespace": b"", "is_current": False}[name]
    monkeypatch.setattr(owner, name, lambda self: answer)
    code, rows = run_bench(tmp_path)
    assert code == 1
    assert {row["metric"] for row in rows} <= {"fingerprint_us"}
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("tensors", [14, 28, 400, 1500])
def test_changing_model_has_the_number_of_weights(tensors: int) -> None:
    model = ChangingModel(tensors, 8)
    assert len(list(model.visual.parameters())) == tensors
    with_adapters = ChangingModel(tensors, 8, has_adapters=True)
    names = [name for name, _ in with_adapters.visual.named_parameters() if "lora" not in name]
    assert len(names) == tensors


def test_plot_of_the_changes_bench_gives_a_png_file_and_says_if_the_target_is_missed(
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    _, rows = run_bench(tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")
    for meets, words in ((True, "within its target"), (False, "its target is missed")):
        judged = [{**row, "meets_target": meets if row["contender"] == VITCACHE else None} for row in rows]
        assert words in " ".join(plot.draw(judged).get_suptitle().split())
