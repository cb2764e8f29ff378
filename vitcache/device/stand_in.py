"""The stand-in for the CUDA runtime, for machines without a GPU.

The stand-in is a library with the entry points of the CUDA runtime. csrc/stand_in describes it.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from vitcache._native import CudaRuntime
from vitcache.errors import CudaError

_pid: int | None = (
    None  # of the process that opened the stand-in first: its streams are threads of that process
)


def path() -> str:
    """Return the absolute path of the library: `VITCACHE_STAND_IN` if it is set, else the installed library.

    Raises
    ------
    CudaError
        If `VITCACHE_STAND_IN` is not an absolute path.
    RuntimeError
        If the library is not installed.
    """
    if configured := os.environ.get("VITCACHE_STAND_IN"):
        if not os.path.isabs(configured):
            raise CudaError(f"VITCACHE_STAND_IN is {configured!r}, it must be an absolute path")
        return configured
    spec = find_spec("vitcache._stand_in")
    if spec is None or spec.origin is None:
        raise RuntimeError("vitcache._stand_in is missing: this build is not complete")
    return os.path.abspath(spec.origin)


def open_runtime() -> CudaRuntime:
    """Open the stand-in as the CUDA runtime.

    Raises
    ------
    CudaError
        If the library cannot be opened, or a process from which this one was forked has opened it.
    """
    global _pid
    pid = os.getpid()
    if _pid not in (None, pid):
        raise CudaError(
            f"rings on the CPU belong to process {_pid}, this is process {pid}: spawn processes instead"
        )
    runtime = CudaRuntime.open_file(path())
    _pid = pid
    return runtime
