"""The stand-in for the CUDA runtime, for machines without a GPU.

The stand-in is a library with the entry points of the CUDA runtime. csrc/stand_in describes it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from vitcache._native import CudaRuntime


def path() -> str:
    """Return the path of the library: `VITCACHE_STAND_IN` if it is set, else the installed library."""
    if configured := os.environ.get("VITCACHE_STAND_IN"):
        return configured
    spec = find_spec("vitcache._stand_in")
    if spec is None or spec.origin is None:
        raise RuntimeError("vitcache._stand_in is missing: this build is not complete")
    return spec.origin


def open_runtime() -> CudaRuntime:
    """Open the stand-in as the CUDA runtime."""
    return CudaRuntime.open_file(path())
