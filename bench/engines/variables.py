"""The environment variables of vLLM: for a process that is running, and for child processes."""

from __future__ import annotations

import os
from pathlib import Path

from vitcache.bench.harness.registry import CPU

KEPT = ("VLLM_GPU_SYNC_CHECK",)  # a GPU run sets it for all of its engines
REMOVED = ("VLLM_", "VITCACHE_", "TRITON_", "HF_")


def use_vllm_on(device_type: str) -> None:
    """Let vLLM use a device in this process. Call it before vLLM is imported.

    Without a GPU, Triton's interpreter runs the kernels of Model Runner V2.
    """
    if device_type == CPU:
        os.environ |= on_cpu()


def on_cpu() -> dict[str, str]:
    """The variables of an engine on the CPU."""
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # otherwise vLLM binds every engine to the same core
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",  # Triton accepts a machine without a driver only with this variable
    }


def of_every_engine(folder: Path) -> dict[str, str]:
    """The variables of every engine, on each device. All files that vLLM writes are in `folder`."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(folder / "cache"),
        "VLLM_CONFIG_ROOT": str(folder / "config"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def of_child(device_type: str, model_runner: int, folder: Path) -> dict[str, str]:
    """The environment of a process that runs one engine, as `of_every_engine`."""
    own = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(REMOVED)}
    return {
        **own,
        **(on_cpu() if device_type == CPU else {}),
        **of_every_engine(folder),
        "VLLM_USE_V2_MODEL_RUNNER": str(model_runner - 1),
        "PYTHONSAFEPATH": "1",
    }
