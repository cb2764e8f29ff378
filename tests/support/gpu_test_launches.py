"""A plugin for pytest: select the tests that `make gpu` runs, and record the variants that they launch.

``VITCACHE_GPU_DRY=1 python -m pytest -m gpu -p gpu_test_launches --recorded-launches FILE PATHS``
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from launch_recorder import LaunchRecorder
from machine import Machine


class SmokeSizes:
    """The numbers that only dry runs use: no launch may depend on one of them."""

    def __init__(self) -> None:
        self.numbers: set[Any] = set()

    def install(self) -> None:
        size = Machine.size

        def record(machine: Machine, full: Any, smoke: Any) -> Any:
            fulls, smokes = (value if isinstance(value, tuple) else (value,) for value in (full, smoke))
            self.numbers.update(set(smokes) - set(fulls))
            return size(machine, full, smoke)

        Machine.size = record  # type: ignore[method-assign]


recorder = LaunchRecorder(lambda: os.environ.get("PYTEST_CURRENT_TEST", "no test").rsplit(" ", 1)[0])
smoke_sizes = SmokeSizes()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--recorded-launches", type=Path, required=True)


def pytest_configure() -> None:
    recorder.install()
    smoke_sizes.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests whose CUDA variant `make gpu` runs. Without a GPU they have a CPU variant alone."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "cpu" in (params.get("device"), params.get("kernel_device")):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def full_widths() -> Any:
    """A test whose width or dtype differs in a dry run would record a variant that no GPU launches."""
    smoke_sizes.numbers.clear()
    before = set(recorder.labels)
    yield
    for variant in set(recorder.labels) - before:
        differing = smoke_sizes.numbers & {variant.hidden, variant.source, variant.target}
        assert not differing, f"only a dry run has {differing} of {variant}: size() is for counts alone"


def pytest_sessionfinish(session: pytest.Session) -> None:
    recorder.save(session.config.getoption("--recorded-launches"))
