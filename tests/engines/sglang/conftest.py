"""Starts the engines of SGLang that the selected tests need. The other tests call SGLang in this process."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from engine_runner.pool import Pool
from engine_runner.pytest_pool import say, use_pool
from sglang_runner.cases import CASES, environment
from sglang_runner.plug_ins import PLUG_INS, PROBES, write_package

if find_spec("sglang") is None:
    raise pytest.UsageError(
        "tests/engines/sglang needs SGLang: `make engines ENGINE=sglang` runs these tests in .venv-sglang"
    )

FOLDER = Path(__file__).parents[3] / "build/engines-sglang"


def pytest_configure(config: pytest.Config) -> None:
    write_package(FOLDER / PLUG_INS, "sglang_runner", PROBES)
    pool = Pool(
        sys.executable, FOLDER, say, program="sglang_runner.child", cases=CASES, environment=environment
    )
    use_pool(config, pool)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of this process first: the engines need a minute to start."""
    items.sort(key=lambda item: item.get_closest_marker("engines") is not None)
