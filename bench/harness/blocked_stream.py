"""Blocks a stream of the stand-in for the CUDA runtime, so that a bench can measure only the host's work."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vitcache import PinnedRing
from vitcache.device import stand_in

HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@contextmanager
def blocked_stream(ring: PinnedRing) -> Iterator[None]:
    """Block the stream of a ring during a ``with`` block, by a host function that waits.

    The ring must have the host backend.
    """
    runtime = ctypes.CDLL(stand_in.path())
    stream = ctypes.c_void_p(ring._native.stream.handle)
    block_ends = threading.Event()
    wait = HostFunction(lambda _: block_ends.wait() and None)
    _check(runtime.cudaLaunchHostFunc(stream, wait, None), "cudaLaunchHostFunc")
    try:
        yield
    finally:
        block_ends.set()
        _check(runtime.cudaStreamSynchronize(stream), "cudaStreamSynchronize")


def _check(status: int, entry: str) -> None:
    if status != 0:
        raise RuntimeError(f"{entry} of the stand-in returned {status}, expected 0")
