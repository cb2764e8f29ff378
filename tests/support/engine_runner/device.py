"""The device of the engines: the CPU, or the GPU in a run of `make gpu`."""

from __future__ import annotations

import os

DEVICE = "ENGINES_DEVICE"  # the part `engines` of `make gpu` sets it to "cuda"
KEPT = (DEVICE, "VLLM_GPU_SYNC_CHECK")  # variables that engines get from the environment of the tests


def runs_on_gpu() -> bool:
    """Whether the engines of this run use a GPU."""
    return os.environ.get(DEVICE) == "cuda"
