"""The CUDA runtime of this process, found and opened without a CUDA toolkit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitcache._native import CudaRuntime


def open_cuda_runtime() -> CudaRuntime:
    """Open the copy that this process has loaded, or else one that is installed.

    Its `available` says whether there is one.

    Raises
    ------
    ImportError
        If the native module was not built.
    """
    # Imported here, so that what only may need a runtime, such as a content key, works without the module.
    from vitcache._native import CudaRuntime

    return CudaRuntime(cuda_runtime_directories())


def cuda_runtime_directories() -> list[str]:
    """Where NVIDIA's wheels put the CUDA runtime, found without importing torch."""
    nvidia = find_spec("nvidia")
    if nvidia is None:
        return []
    roots = [Path(root) for root in nvidia.submodule_search_locations or ()]
    found = [root / package / "lib" for root in roots for package in ("cu13", "cuda_runtime")]
    return [str(directory) for directory in found if directory.is_dir()]
