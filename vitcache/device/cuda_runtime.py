"""Finds and opens the CUDA runtime of this process. A CUDA toolkit is not needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitcache._native import CudaRuntime


def open_cuda_runtime() -> CudaRuntime:
    """Open the CUDA runtime that this process has loaded. If it has loaded none, open an installed one.

    If no CUDA runtime is found, `available` of the returned object is False and `searched` lists the places.

    Raises
    ------
    ImportError
        If the native module was not built.
    """
    # Imported here: content keys import this module, and must work without the native module.
    from vitcache._native import CudaRuntime

    return CudaRuntime(cuda_runtime_directories())


def cuda_runtime_directories() -> list[str]:
    """Return the folders in which NVIDIA's wheels install the CUDA runtime. Does not import torch."""
    nvidia = find_spec("nvidia")
    if nvidia is None:
        return []
    roots = [Path(root) for root in nvidia.submodule_search_locations or ()]
    found = [root / package / "lib" for root in roots for package in ("cu13", "cuda_runtime")]
    return [str(directory) for directory in found if directory.is_dir()]
