"""Starts the engines of SGLang that the selected tests need. The other tests call SGLang in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from engine_runner.full_log import ROOT
from engine_runner.pool import Pool
from engine_runner.pytest_full import FullRun
from engine_runner.pytest_full import pytest_addoption as pytest_addoption  # a hook of this file
from engine_runner.pytest_pool import say, use_pool
from sglang_runner.cases import CASES, environment
from sglang_runner.plug_ins import PLUG_INS, PROBES

from vitcache.bench.sglang.plug_ins import write_package

if TYPE_CHECKING:
    from sglang_runner.server import Server

if find_spec("sglang") is None:
    raise pytest.UsageError(
        "tests/engines/sglang needs SGLang: `make engines ENGINE=sglang` runs these tests in .venv-sglang"
    )

FOLDER = ROOT / "build/engines-sglang"
PACKAGES = ("sglang", "torch", "torchvision", "triton", "transformers", "vitcache")


def pytest_configure(config: pytest.Config) -> None:
    write_package(FOLDER / PLUG_INS, "sglang_runner", PROBES)
    pool = Pool(
        sys.executable, FOLDER, say, program="sglang_runner.child", cases=CASES, environment=environment
    )
    use_pool(config, pool)
    config.pluginmanager.register(FullRun(PACKAGES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of this process first: the engines need a minute to start, and servers wait for them."""
    items.sort(key=lambda item: any(map(item.get_closest_marker, ("engines", "full"))))


@pytest.fixture(scope="session")
def serve(pool: Pool) -> Callable[..., Server]:
    """Makes a server. The engines of the pool end first: two engines at a time are enough for two cores."""
    from sglang_runner.server import Server

    def make(name: str, *plug_ins: str, **variables: str) -> Server:
        pool.wait()
        pool.say(f"server {name} starts")
        return Server(pool.python, pool.model("qwen3"), pool.folder, name, plug_ins, variables)

    return make
