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
from engine_runner.pool import Outcome, Pool

if find_spec("vllm") is None:
    raise pytest.UsageError("tests/engines needs vLLM: `make engines` runs these tests in .venv-vllm")

ROOT = Path(__file__).parents[2]
collect_ignore = ["sglang"]  # its tests run in .venv-sglang
BEGIN = time.monotonic()
POOL = pytest.StashKey[Pool]()
REPORTS: list[tuple[str, str, float]] = []  # test, outcome, seconds


def say(line: str) -> None:
    print(f"  {time.monotonic() - BEGIN:4.0f} s  {line}", flush=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked full, too")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[POOL] = Pool(sys.executable, ROOT / "build/engines", say)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `full`, unless they are wanted."""
    left_out = [item for item in items if item.get_closest_marker("full") and not config.option.full]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_runtestloop(session: pytest.Session) -> None:
    """Start the engines of all selected tests before the first test."""
    if not session.config.option.collectonly:
        markers = [marker for item in session.items for marker in item.iter_markers("engines")]
        session.config.stash[POOL].start(name for marker in markers for name in marker.args)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        REPORTS.append((report.nodeid, report.outcome, report.duration))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    pool = session.config.stash[POOL]
    if session.config.option.full:
        path = pool.folder / "full.log"
        write_log(path, pool.outcomes(), REPORTS, exitstatus, time.monotonic() - BEGIN)
        say(f"{path.relative_to(ROOT)} has the versions, times and counts of this run")
    pool.stop()


@pytest.fixture(scope="session")
def pool(pytestconfig: pytest.Config) -> Pool:
    return pytestconfig.stash[POOL]


@pytest.fixture(scope="session")
def result(pool: Pool) -> Callable[[str], dict[str, Any]]:
    """The result of an engine. If its process failed, the test fails with the end of its output."""

    def get(name: str) -> dict[str, Any]:
        outcome = pool.outcome(name)
        if outcome.code != 0:
            pytest.fail(outcome.tail(), pytrace=False)
        return outcome.result

    return get


@pytest.fixture(scope="session")
def outcome(pool: Pool) -> Callable[[str], Outcome]:
    """How the process of an engine ended, by the engine's name."""
    return pool.outcome


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
