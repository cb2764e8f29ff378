"""The outcomes in the lines of a run: finished tests and parts, and which results may be in one file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from gpu_runner.junit import write_report
from gpu_runner.outcomes import check_machine, describe, finished_parts, finished_tests

FACTS = {"device": "NVIDIA H200", "torch": "2.11.0", "commit": "abc"}


def line_of(test: str, outcome: str, suite: str = "tests", message: str = "") -> dict[str, Any]:
    return {"kind": "test", "suite": suite, "test": test, "outcome": outcome, "seconds": 0.5} | {
        "message": message
    }


def case_lines(case: str, state: str, rows: int = 1) -> list[dict[str, Any]]:
    begun = {"kind": "case", "bench": "ring", "case": case, "state": "begun", "number": 1, "count": 3}
    lines = [begun, *({"kind": "row", "bench": "ring"} for _ in range(rows))]
    return lines if state == "begun" else [*lines, {**begun, "state": state}]


@pytest.mark.parametrize("fact", sorted(FACTS))
def test_results_of_another_machine_or_commit_are_refused_with_both_values(fact: str) -> None:
    lines = [{"kind": "run", **FACTS}, line_of("a", "passed")]
    check_machine(lines, FACTS)
    with pytest.raises(ValueError, match=f"have the {fact} {FACTS[fact]}, this run has other"):
        check_machine(lines, {**FACTS, fact: "other"})


def test_run_without_results_may_be_resumed_on_another_machine() -> None:
    lines = [{"kind": "run", **FACTS}, {"kind": "part", "part": "tests", "outcome": "cut"}]
    check_machine(lines, {**FACTS, "commit": "other"})


def test_finished_tests_are_those_whose_latest_outcome_is_not_a_failure() -> None:
    lines = [
        line_of("a", "passed"),
        line_of("b", "failed"),
        line_of("c", "failed"),
        line_of("d", "skipped"),
        line_of("c", "passed"),
        line_of("a", "failed", suite="memcheck"),
    ]
    assert finished_tests(lines, "tests") == {"a", "c", "d"}


def test_finished_parts_are_those_whose_latest_outcome_is_ok() -> None:
    outcomes = [("tests", "cut"), ("ring", "ok"), ("tests", "ok"), ("keys", "ok"), ("keys", "failed")]
    lines = [{"kind": "part", "part": part, "outcome": outcome} for part, outcome in outcomes]
    assert finished_parts(lines) == {"tests", "ring"}


def test_describe_counts_tests_of_the_part_and_finds_a_failure() -> None:
    lines = [line_of("a", "passed"), line_of("b", "failed"), line_of("c", "skipped")]
    assert describe(lines, "tests", ["tests"]) == (True, "1 passed, 1 failed, 1 skipped tests")
    assert describe(lines, "sanitize", ["memcheck"]) == (False, "no tests")


def test_describe_names_the_finished_cases_of_a_bench_and_counts_their_rows() -> None:
    lines = [*case_lines("a", "finished", 2), *case_lines("b", "begun", 1)]
    assert describe(lines, "ring", []) == (False, "1 of 3 cases: a; 3 rows")
    failed = [*lines, *case_lines("b", "failed", 1)]
    assert describe(failed, "ring", []) == (True, "1 of 3 cases: a; 3 rows; failed: b")
    assert describe([], "ring", []) == (False, "0 of ? cases: -; 0 rows")


def test_describe_names_bad_findings_of_the_probe() -> None:
    findings = [("first", "BAD"), ("second", "ok"), ("first", "ok"), ("third", "BAD")]
    lines = [{"kind": "probe", "item": item, "verdict": verdict} for item, verdict in findings]
    assert describe(lines, "probe", []) == (True, "3 findings, BAD: third")
    assert describe(lines[:3], "probe", []) == (False, "2 findings")


def test_test_report_has_the_latest_outcome_of_every_run(tmp_path: Path) -> None:
    lines = [
        line_of("tests/gpu/test_ops.py::test_a[x::y]", "failed", message="first try"),
        line_of("tests/gpu/test_ops.py::test_b", "failed", message="Traceback\nE  <\x00 & 3"),
        line_of("tests/gpu/test_ops.py::test_c", "skipped", message="no device"),
        line_of("tests/gpu/test_ops.py::test_a[x::y]", "passed"),
        line_of("other", "failed", suite="memcheck"),
    ]
    write_report(lines, "tests", tmp_path / "gpu-tests.xml")
    root = ET.parse(tmp_path / "gpu-tests.xml").getroot()
    counts = {name: root.get(name) for name in ("tests", "failures", "skipped", "time")}
    assert counts == {"tests": "3", "failures": "1", "skipped": "1", "time": "1.500"}
    cases = {case.get("name"): case for case in root}
    assert list(cases["test_a[x::y]"]) == []
    assert cases["test_b"].get("classname") == "tests.gpu.test_ops"
    [failure] = cases["test_b"]
    assert (failure.tag, failure.get("message")) == ("failure", "E  <? & 3")
    assert cases["test_c"][0].tag == "skipped"
