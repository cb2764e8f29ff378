"""A plug-in of pytest: starts the engines that the selected tests need, and gives their results to the tests.

A conftest.py calls `use_pool` in its `pytest_configure`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from engine_runner.pool import Outcome, Pool

BEGIN = time.monotonic()
POOL = pytest.StashKey[Pool]()


def say(line: str) -> None:
    print(f"  {time.monotonic() - BEGIN:4.0f} s  {line}", flush=True)


def use_pool(config: pytest.Config, pool: Pool) -> None:
    """Let this run of pytest use a pool."""
    config.stash[POOL] = pool
    config.pluginmanager.register(sys.modules[__name__])


def pytest_runtestloop(session: pytest.Session) -> None:
    """Start the engines of all selected tests before the first test."""
    if not (session.config.option.collectonly or session.testsfailed):
        markers = [marker for item in session.items for marker in item.iter_markers("engines")]
        session.config.stash[POOL].start(name for marker in markers for name in marker.args)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[POOL].stop()


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
