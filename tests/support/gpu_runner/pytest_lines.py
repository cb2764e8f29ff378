"""A plugin of pytest: writes a line per test, and leaves out the tests that an earlier run finished.

The variables VITCACHE_TEST_LINES and VITCACHE_TEST_SUITE name the file and the report of the tests. With
VITCACHE_TEST_RESUME, the tests that the file calls passed or skipped do not run.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from gpu_runner.lines import ResultLines, read
from gpu_runner.outcomes import finished_tests

MOST_CHARACTERS = 20_000  # of the description of a failure; the log contains all of it
FINISHED = "vitcache_finished_tests"


class LineWriter:
    """Collects the reports of the phases of each test, and writes a line when the last phase ends."""

    def __init__(self, lines: ResultLines, suite: str, finished: set[str]) -> None:
        self._lines, self._suite = lines, suite
        self._finished = finished
        self._reports: dict[str, list[pytest.TestReport]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the report of one phase. If a worker died, its test has one phase, named `???`."""
        self._reports.setdefault(report.nodeid, []).append(report)
        if report.when not in ("setup", "call"):
            self._write(report.nodeid, self._reports.pop(report.nodeid))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Pass the finished tests to a worker of pytest-xdist.

        All workers must collect the same tests, so that a worker must not read the file: it grows.
        """
        node.workerinput[FINISHED] = sorted(self._finished)

    def _write(self, test: str, reports: list[pytest.TestReport]) -> None:
        chosen = next(
            (report for outcome in ("failed", "skipped") for report in reports if report.outcome == outcome),
            reports[0],
        )
        text = "" if chosen.outcome == "passed" else chosen.longreprtext
        if len(text) > MOST_CHARACTERS:
            text = f"{text[:MOST_CHARACTERS]}\n({len(text) - MOST_CHARACTERS} more characters, see the log)"
        self._lines.add(
            "test",
            suite=self._suite,
            test=test,
            outcome=chosen.outcome,
            seconds=round(sum(report.duration for report in reports), 3),
            message=text,
        )


def pytest_configure(config: pytest.Config) -> None:
    """Write lines in the process that receives all reports, which is not a worker of pytest-xdist."""
    if hasattr(config, "workerinput"):
        return
    lines, suite = ResultLines(Path(os.environ["VITCACHE_TEST_LINES"])), os.environ["VITCACHE_TEST_SUITE"]
    resume = os.environ.get("VITCACHE_TEST_RESUME")
    finished = finished_tests(read(lines.path), suite) if resume else set()
    config.pluginmanager.register(LineWriter(lines, suite, finished), FINISHED)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the finished tests."""
    if hasattr(config, "workerinput"):
        finished = set(config.workerinput[FINISHED])
    else:
        finished = config.pluginmanager.get_plugin(FINISHED)._finished
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in finished])
    items[:] = [item for item in items if item.nodeid not in finished]
