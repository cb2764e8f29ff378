"""`python -m vitcache bench --bench engines` with its smoke cases, in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
from engine_runner.bench import run_smoke_cases
from engine_runner.device import runs_on_gpu

SUMMARY = "it needs a GPU"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """The rows of the bench, and its output."""
    if runs_on_gpu():
        pytest.skip("make gpu runs the bench by itself")
    return run_smoke_cases("engines", tmp_path_factory.mktemp("bench"))


def values(rows: list[dict[str, Any]], metric: str, case: str = "") -> dict[str, float]:
    """The values of a metric by contender, in the cases whose names begin with `case`."""
    return {
        row["contender"]: row["value"]
        for row in rows
        if row["metric"] == metric and row["case"].startswith(case)
    }


def test_bench_has_a_host_time_of_both_model_states_in_each_case(
    finished: tuple[list[dict[str, Any]], str],
) -> None:
    rows, _ = finished
    for case in ("decode", "2 hits", "2 hits, 3 deepstack levels"):
        found = {row["contender"]: row["value"] for row in rows if row["case"] == case}
        assert {"stock", "vitcache"} <= set(found)
        assert min(found.values()) > 0


def test_bench_counts_one_encode_per_image_and_fewer_written_bytes(
    finished: tuple[list[dict[str, Any]], str],
) -> None:
    rows, _ = finished
    encodes = values(rows, "encodes", "chat")
    assert encodes["vitcache"] == encodes["vitcache, place_rows false"] == 6 < encodes["stock"]
    written = values(rows, "written_bytes")
    assert written["vitcache"] < written["stock"] == written["vitcache, place_rows false"]
    copied = values(rows, "feature_bytes")
    assert copied["vitcache"] < copied["stock"]
    assert values(rows, "load_bytes")["vitcache"] > 0


def test_bench_on_a_cpu_times_the_stages_without_triton(finished: tuple[list[dict[str, Any]], str]) -> None:
    rows, _ = finished
    timed = {row["metric"] for row in rows if row["unit"] in ("ms", "us") and row["case"].startswith("chat")}
    assert timed == {"encoder_ms", "inputs_ms", "inputs_host_us"}
    for metric in timed:
        found = values(rows, metric, "chat")
        assert set(found) == {"stock", "vitcache, place_rows false", "vitcache"}
        assert min(found.values()) > 0


def test_bench_meets_the_wins_that_need_no_gpu_and_names_the_skipped_ones(
    finished: tuple[list[dict[str, Any]], str],
) -> None:
    rows, output = finished
    wins = {row["case"].partition(":")[0]: row["meets_target"] for row in rows if row["case"][:4] == "win "}
    assert wins == {"win 5": True, "win 7": True, "win 9": True, "win 10": True}
    assert sum(line.startswith("engines: win ") and SUMMARY in line for line in output.splitlines()) == 4
    assert sum(row["value"] for row in rows if row["metric"] == "skipped_wins") == 4
