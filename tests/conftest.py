"""Fixtures of all tests: devices, rings and seeds. Also selects the tests that run.

Without a CUDA device, or with VITCACHE_GPU_DRY=1, Triton interprets its kernels on the CPU. Triton reads
TRITON_INTERPRET when a kernel is defined, so this module sets it before any test module is imported.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in_build
import torch
from machine import CUDA, DRY

from vitcache import versions
from vitcache.pages.pool import PagePool
from vitcache.ring.pinned_ring import PinnedRing
from vitcache.testing import stand_in

GPU_TESTS = Path(__file__).parent / "gpu"
# These tests need vLLM or SGLang: `make engines` runs them in .venv-vllm and .venv-sglang, each with its own
# pytest.ini.
collect_ignore = ["engines"]

if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
if DRY:
    # Dry runs use the dtypes of a GPU. Some virtual machines report AMX and cannot run its bfloat16.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


ON_CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", ON_CUDA] if CUDA else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Each usable device: the CPU, and CUDA if torch can use it."""
    return request.param


@pytest.fixture(params=[ON_CUDA] if CUDA else ["cpu"])
def kernel_device(request: pytest.FixtureRequest) -> str:
    """The device that runs Triton kernels: CUDA, or the CPU if they are interpreted."""
    return request.param


@pytest.fixture
def ring_options() -> dict[str, Any]:
    """Arguments of `ring` and `host_ring`. A module that needs other sizes defines this fixture again."""
    return {"capacity_bytes": 1 << 20}


@pytest.fixture
def ring_backend() -> str:
    """Backend of `ring`. A module that copies to a GPU defines this fixture again."""
    return "host"


@pytest.fixture
def ring(ring_options: dict[str, Any], ring_backend: str) -> Iterator[PinnedRing]:
    """An open ring. The stand-in is reset before and after the test."""
    with open_ring(backend=ring_backend, **ring_options) as ring:
        yield ring


@pytest.fixture
def host_ring(ring_options: dict[str, Any]) -> Iterator[PinnedRing]:
    """An open ring of the host backend, even on a machine with a GPU."""
    with open_ring(backend="host", **ring_options) as ring:
        yield ring


@pytest.fixture(params=["no ring", "ring"])
def maybe_ring(request: pytest.FixtureRequest) -> PinnedRing | None:
    """The test runs twice: with None and with `ring`."""
    return request.getfixturevalue("ring") if request.param == "ring" else None


@contextmanager
def open_ring(**options: Any) -> Iterator[PinnedRing]:
    stand_in.reset()
    with PinnedRing(**{"num_threads": 2, **options}) as ring:
        yield ring
        stand_in.pause(False)  # if a test failed while streams were paused, `close` would wait forever
    stand_in.reset()


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def finished() -> Iterator[None]:
    """Wait for the device after each test, so that the test that caused a fault reports it."""
    yield
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def pytest_runtest_logfinish(nodeid: str) -> None:
    """If the device is lost, end the process: each later test in this process would fail."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)  # xdist starts a new worker for the next tests
        pytest.exit(f"after {nodeid} the device is lost: {error}", returncode=1)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # once, before the workers start: they inherit the environment
        stand_in_build.provide()


def gpu_tests_are_wanted(config: pytest.Config) -> bool:
    return DRY or "gpu" in config.option.markexpr


def soak_is_wanted(config: pytest.Config) -> bool:
    return "soak" in config.option.markexpr


def pytest_report_header(config: pytest.Config) -> list[str]:
    installed = ", ".join(
        f"{name} {versions.installed_version(name)}" for name in ("torch", "triton", "transformers")
    )
    header = [f"{installed}; CUDA device: {'yes' if CUDA else 'no'}"]
    if not gpu_tests_are_wanted(config):
        header.append("tests of tests/gpu are left out: `make gpu` runs them, `make gpu DRY=1` on the CPU")
    header.append(
        "tests of tests/engines are left out: `make engines` runs them in .venv-vllm and .venv-sglang"
    )
    if not soak_is_wanted(config):
        header.append("tests marked soak are left out: `make soak` runs them")
    return header


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of tests/gpu as `gpu`. Deselect these and the `soak` tests, unless they are wanted."""
    gpu_items = [item for item in items if GPU_TESTS in item.path.parents]
    for item in gpu_items:
        item.add_marker(pytest.mark.gpu)
    left_out = [] if gpu_tests_are_wanted(config) else gpu_items
    if not soak_is_wanted(config):
        left_out += [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of pages of each copy between tiers, in order."""
    num_pages: list[int] = []
    copy_pages = PagePool.copy_pages

    def count(self: PagePool, pages: Any, source: PagePool, source_pages: Any) -> None:
        num_pages.append(len(pages))
        copy_pages(self, pages, source, source_pages)

    monkeypatch.setattr(PagePool, "copy_pages", count)
    return num_pages
