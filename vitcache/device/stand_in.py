"""The stand-in for the CUDA runtime, for machines without a GPU.

A library with the entry points of the real one; csrc/stand_in says what it does.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from vitcache._native import CudaRuntime


def path() -> str:
    """Return the library's file: `VITCACHE_STAND_IN`, or the one that is installed with the native module."""
    if chosen := os.environ.get("VITCACHE_STAND_IN"):
        return chosen
    spec = find_spec("vitcache._stand_in")
    if spec is None or spec.origin is None:
        raise RuntimeError("vitcache._stand_in is missing: this build is not complete")
    return spec.origin


def open_runtime() -> CudaRuntime:
    """Open it in the place of the real runtime."""
    return CudaRuntime.open_file(path())
