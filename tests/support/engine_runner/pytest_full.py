"""A plug-in of pytest: the option `--full`, the marker `full`, and the log of a full run.

A conftest.py imports `pytest_addoption`, and registers a `FullRun` in its `pytest_configure`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from engine_runner.full_log import ROOT, FinishedTest, write_log
from engine_runner.pytest_pool import BEGIN, POOL, say


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked full, too")


class FullRun:
    """The hooks of one run. Its log has the versions of `packages`."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages
        self.tests: list[FinishedTest] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out the tests marked `full`, unless they are wanted."""
        left_out = [item for item in items if item.get_closest_marker("full") and not config.option.full]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            found = FinishedTest(report.nodeid, report.outcome, report.duration, dict(report.user_properties))
            self.tests.append(found)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        pool = session.config.stash[POOL]
        if session.config.option.full:
            path = pool.folder / "full.log"
            seconds = time.monotonic() - BEGIN
            write_log(path, self.packages, pool.outcomes(), self.tests, exitstatus, seconds)
            say(f"{path.relative_to(ROOT)} has the versions, times and counts of this run")
