"""Starts the engines that the selected tests need, and writes the log of a full run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from engine_runner.full_log import write_log
from engine_runner.pool import Pool
from engine_runner.pytest_pool import BEGIN, POOL, say, use_pool

if find_spec("vllm") is None:
    raise pytest.UsageError("tests/engines needs vLLM: `make engines` runs these tests in .venv-vllm")

collect_ignore = ["sglang"]  # its tests run in .venv-sglang
ROOT = Path(__file__).parents[2]
REPORTS: list[tuple[str, str, float]] = []  # test, outcome, seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked full, too")


def pytest_configure(config: pytest.Config) -> None:
    use_pool(config, Pool(sys.executable, ROOT / "build/engines", say))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `full`, unless they are wanted."""
    left_out = [item for item in items if item.get_closest_marker("full") and not config.option.full]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        REPORTS.append((report.nodeid, report.outcome, report.duration))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    pool = session.config.stash[POOL]
    if session.config.option.full:
        path = pool.folder / "full.log"
        write_log(path, pool.outcomes(), REPORTS, exitstatus, time.monotonic() - BEGIN)
        say(f"{path.relative_to(ROOT)} has the versions, times and counts of this run")


@pytest.fixture
def make_states(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes a `States` with its options. It is closed after the test."""
    from engine_runner.states import States

    made = []

    def make(**options: Any) -> States:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(options.get("model_runner", 2) - 1))
        made.append(States(pool.model("qwen3"), **options))
        return made[-1]

    yield make
    for states in made:
        states.close()
