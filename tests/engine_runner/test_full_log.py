"""The log of a full run: the counts of engines of both kinds, and the properties of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_runner.full_log import FinishedTest, lines_of, write_log
from engine_runner.pool import Outcome
from sglang_runner.cases import CASES


def outcome(**result: Any) -> Outcome:
    return Outcome(CASES["stock"], 0, is_cut=False, seconds=2.0, result={"up_s": 1.0, **result}, output="")


def test_turns_at_once_have_the_encodes_of_the_first() -> None:
    [line] = lines_of(outcome(together=[{"encodes": 3}, {}, {}], infos=[None, {"steps": 1}]))
    assert line.endswith("up in 1.0 s  together 3 turns 3 encodes")


def test_counts_within_counts_have_a_line_for_each_number() -> None:
    counts = {"placed": 4, "vitcache": {"errors": 0, "originals": {"disabled": 2}, "version": "1"}}
    _, *lines = lines_of(outcome(counts=counts))
    assert [line.strip() for line in lines] == [
        "placed 4",
        "vitcache errors 0",
        "vitcache originals disabled 2",
    ]


def test_log_has_the_versions_and_the_properties_of_tests(tmp_path: Path) -> None:
    tests = [FinishedTest("test_memory.py::test_flat", "passed", 1.5, {"scheduler_mib": [10.0, 10.5]})]
    write_log(tmp_path / "full.log", ("pytest",), [], tests, 0, 3.0)
    *_, test, found = (tmp_path / "full.log").read_text().splitlines()
    assert test == "passed      1.5 s  test_memory.py::test_flat"
    assert found.split() == ["scheduler_mib", "[10.0,", "10.5]"]
