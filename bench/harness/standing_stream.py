"""A stream of the stand-in for the CUDA runtime that stands still: the host is measured alone meanwhile."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vitcache import PinnedRing
from vitcache.device import stand_in

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@contextmanager
def standing_stream(ring: PinnedRing) -> Iterator[None]:
    """Let the stream of a ring on the stand-in stand still meanwhile, in a host function that sleeps."""
    runtime = ctypes.CDLL(stand_in.path())
    stream = ctypes.c_void_p(ring._native.stream.handle)
    over = threading.Event()
    sleep = HostFunction(lambda _: over.wait() and None)
    _check(runtime.cudaLaunchHostFunc(stream, sleep, None), "cudaLaunchHostFunc")
    try:
        yield
    finally:
        over.set()
        _check(runtime.cudaStreamSynchronize(stream), "cudaStreamSynchronize")


def _check(status: int, entry: str) -> None:
    if status != 0:
        raise RuntimeError(f"{entry} of the stand-in returned {status}")
