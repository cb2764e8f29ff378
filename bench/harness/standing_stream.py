"""A stream of the stand-in for the CUDA runtime that stands still: the host is measured alone meanwhile."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from vitcache import PinnedRing
from vitcache.device import stand_in


@contextmanager
def standing_stream(ring: PinnedRing) -> Iterator[None]:
    """Let the stream of a ring on the stand-in wait meanwhile for a value that the host writes at the end."""
    runtime = ctypes.CDLL(stand_in.path())
    stream = ctypes.c_void_p(ring._native.stream)
    memory = ctypes.c_void_p()
    _check(runtime.cudaHostAlloc(ctypes.byref(memory), ctypes.c_size_t(4), 0), "cudaHostAlloc")
    word = ctypes.c_uint32.from_address(memory.value or 0)
    word.value = 0
    address, value = ctypes.c_ulonglong(memory.value or 0), ctypes.c_uint32(1)
    _check(runtime.cuStreamWaitValue32_v2(stream, address, value, 0), "cuStreamWaitValue32_v2")
    try:
        yield
    finally:
        word.value = 1
        _check(runtime.cudaStreamSynchronize(stream), "cudaStreamSynchronize")
        _check(runtime.cudaFreeHost(memory), "cudaFreeHost")


def _check(status: int, entry: str) -> None:
    if status != 0:
        raise RuntimeError(f"{entry} of the stand-in returned {status}")
