"""Work that may run while a thread captures a CUDA graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from vitcache.device.cuda_runtime import open_cuda_runtime


def relaxed_capture_mode() -> AbstractContextManager[None]:
    """Let calls of this thread that may wait for the device run while another thread captures a graph.

    To load a module, or to allocate pinned memory, is such a call. In the default mode it fails, and breaks
    the capture of the other thread. The mode belongs to the calling thread. Without a CUDA runtime, does
    nothing.
    """
    runtime = open_cuda_runtime()
    if not runtime.available:
        return nullcontext()
    # Imported here: content keys import this module, and must work without the native module.
    from vitcache._native import RelaxedCapture

    return RelaxedCapture(runtime)
