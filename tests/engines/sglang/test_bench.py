"""`python -m vitcache bench --bench sglang` with its smoke cases, in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
from engine_runner.bench import run_smoke_cases

from vitcache.bench.claims.bench_sglang import CASES


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of the bench."""
    return run_smoke_cases("sglang", tmp_path_factory.mktemp("bench"))[0]


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
