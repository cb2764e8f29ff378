"""The outcomes in the lines of a run: finished tests, finished parts, and results so far."""

from collections import Counter
from typing import Any

from gpu_runner.lines import Lines, cases_of

OK, FAILED, CUT, SKIPPED = "ok", "failed", "cut", "skipped"
# Facts that must be equal for all results of one file.
FACTS = ("device", "torch", "commit")
RESULTS = ("row", "test", "probe")


def test_outcomes(lines: Lines, suite: str) -> dict[str, dict[str, Any]]:
    """Return the latest line of each test of a report, in the order of the first lines."""
    return {line["test"]: line for line in lines if line["kind"] == "test" and line["suite"] == suite}


def finished_tests(lines: Lines, suite: str) -> set[str]:
    """Return the tests whose latest outcome is passed or skipped."""
    latest = test_outcomes(lines, suite)
    return {test for test, line in latest.items() if line["outcome"] in ("passed", "skipped")}


def finished_parts(lines: Lines) -> set[str]:
    """Return the parts whose latest outcome is ok."""
    latest = {line["part"]: line["outcome"] for line in lines if line["kind"] == "part"}
    return {part for part, outcome in latest.items() if outcome == OK}


def check_machine(lines: Lines, facts: dict[str, Any]) -> None:
    """Raise ValueError if earlier results are of another GPU, torch or commit than the facts of this run."""
    if not any(line["kind"] in RESULTS for line in lines):
        return
    for line in lines:
        if line["kind"] == "run":
            for name in FACTS:
                if line[name] != facts[name]:
                    raise ValueError(
                        f"the earlier results have the {name} {line[name]}, this run has {facts[name]}: "
                        "results of both must not be in one file"
                    )


def describe(lines: Lines, part: str, suites: list[str]) -> tuple[bool, str]:
    """Return whether the results of a part contain a failure, and a line that counts its results."""
    if suites:
        counts = Counter(line["outcome"] for suite in suites for line in test_outcomes(lines, suite).values())
        text = ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped") if counts[name])
        tests = f"{text or 'no'} tests"
        if part not in cases_of(lines):
            return counts["failed"] > 0, tests
        has_failed, cases_text = describe(lines, part, [])
        return has_failed or counts["failed"] > 0, f"{tests}; {cases_text}"
    findings = {line["item"]: line["verdict"] for line in lines if line["kind"] == "probe"}
    if part == "probe":
        bad = [item for item, verdict in findings.items() if verdict == "BAD"]
        return bool(bad), f"{len(findings)} findings" + (f", BAD: {', '.join(bad)}" if bad else "")
    cases = cases_of(lines).get(part, [])
    done = [case.name for case in cases if case.state == "finished"]
    failed = [case.name for case in cases if case.state == FAILED]
    text = f"{len(done)} of {cases[0].count if cases else '?'} cases: {', '.join(done) or '-'}"
    num_rows = sum(len(case.rows) for case in cases)
    return bool(failed), f"{text}; {num_rows} rows" + (f"; failed: {', '.join(failed)}" if failed else "")
