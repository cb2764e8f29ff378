"""`python -m vitcache bench --bench sglang` with its smoke cases, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitcache.bench.claims.bench_sglang import CASES

LIMIT_S = 300


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of the bench."""
    folder: Path = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "vitcache", "bench", "--bench", "sglang", "--cases", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(folder)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    if done.returncode:
        pytest.fail(done.stdout, pytrace=False)
    [path] = folder.glob("sglang-*.json")
    results: list[dict[str, Any]] = json.loads(path.read_text())
    return results


def test_bench_has_a_time_of_both_sides_in_each_case(rows: list[dict[str, Any]]) -> None:
    """A side that built wrong rows, or encoded another number of images, would have no result."""
    for case in CASES["smoke"]:
        found = [row for row in rows if row["case"] == case.name]
        assert {row["contender"] for row in found} == {"stock", "vitcache"}
        assert all(row["value"] > 0 and row["unit"] == "us" for row in found)


def test_bench_measures_the_ratio_to_stock_in_the_same_run(rows: list[dict[str, Any]]) -> None:
    times = {(row["case"], row["metric"], row["contender"]): row["value"] for row in rows}
    for row in rows:
        stock = times[row["case"], row["metric"], "stock"]
        assert row["ratio_to"] == "stock"
        assert row["ratio"] == pytest.approx(row["value"] / stock, rel=1e-3)
