"""Work that may run while a thread captures a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vitcache.device.cuda_runtime import open_cuda_runtime

RELAXED_MODE = 2  # cudaStreamCaptureModeRelaxed


@contextmanager
def relaxed_capture_mode() -> Iterator[None]:
    """Let calls of this thread that may wait for the device run while another thread captures a graph.

    To load a module, or to allocate pinned memory, is such a call. In the default mode it fails, and breaks
    the capture of the other thread. The mode belongs to the calling thread. Without a CUDA runtime, does
    nothing.
    """
    runtime = open_cuda_runtime()
    if not runtime.available:
        yield
        return
    earlier_mode = runtime.exchange_capture_mode(RELAXED_MODE)
    try:
        yield
    finally:
        runtime.exchange_capture_mode(earlier_mode)
