"""The machine that the tests of this folder run on."""

import gc

import pytest
from machine import CUDA, DRY, Machine


@pytest.fixture(scope="session")
def gpu() -> Machine:
    """The first CUDA device; with VITCACHE_GPU_DRY=1 the CPU in its place."""
    if not CUDA and not DRY:
        pytest.skip(
            "no CUDA device: `make gpu` on a machine that has one, or VITCACHE_GPU_DRY=1 for a dry run"
        )
    return Machine("cpu" if DRY else "cuda", dry=DRY)


@pytest.fixture(autouse=True)
def collect_garbage(gpu: Machine) -> None:
    """Collect garbage before the test: finalizing a cache in a reference cycle waits for the device."""
    if not gpu.dry:
        gc.collect()
