"""Controls of the stand-in for the CUDA runtime: pause its streams, make calls fail, count calls.

The controls act on the whole process. csrc/stand_in/faults.h describes each control. Only builds for tests
contain the controls; wheels do not. `make setup` builds a library with controls. `VITCACHE_STAND_IN` selects
another library.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec


class Counts(ctypes.Structure):
    """Counts since the reset, and numbers of live objects.

    Since the reset: `synchronizing_calls` (calls that wait or may wait for the device), completed `copies`
    and `copied_bytes`, and `locking_devices` (a bit for each device that was current while memory was
    pinned). Live: `streams`, `events` and `locked_bytes` (pinned memory).
    """

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "synchronizing_calls",
            "copies",
            "copied_bytes",
            "streams",
            "events",
            "locked_bytes",
            "locking_devices",
        )
    ]


def reset() -> None:
    """Set the counts to zero, end all failures, limits and pauses, and set the number of devices to one."""
    _library().vitcache_stand_in_reset()


def count() -> Counts:
    """Return the current counts."""
    counts: Counts = _library().vitcache_stand_in_count()
    return counts


def pause(paused: bool) -> None:
    """Pause all streams, or resume them."""
    _library().vitcache_stand_in_pause(paused)


@contextmanager
def paused() -> Iterator[None]:
    """Pause all streams inside the context."""
    pause(True)
    try:
        yield
    finally:
        pause(False)


def fail(entry: str, nth: int = 1, error: int = 999) -> None:
    """Make the `nth` call from now of entry point `entry` fail with `error`."""
    _library().vitcache_stand_in_fail(entry.encode(), nth, error)


def fail_copy(nth: int = 1) -> None:
    """Make the `nth` copy from now fail when it is executed. All devices are then lost until `reset`."""
    _library().vitcache_stand_in_fail_copy(nth)


def set_devices(number: int) -> None:
    """Set the number of devices. `reset` sets it to one."""
    _library().vitcache_stand_in_set_devices(number)


def limit_locked_bytes(limit: int) -> None:
    """Make allocations of pinned memory fail beyond a total of `limit` bytes."""
    _library().vitcache_stand_in_limit_locked_bytes(limit)


def has_controls() -> bool:
    """Whether the library in use was built for tests."""
    return hasattr(ctypes.CDLL(_path()), "vitcache_stand_in_reset")


@cache
def _library() -> ctypes.CDLL:
    if not has_controls():
        raise RuntimeError(f"{_path()} was built without VITCACHE_STAND_IN_FAULTS: it has no controls")
    library = ctypes.CDLL(_path())
    library.vitcache_stand_in_count.restype = Counts
    library.vitcache_stand_in_limit_locked_bytes.argtypes = [ctypes.c_size_t]
    return library


def _path() -> str:
    spec = find_spec("vitcache._stand_in")
    path = os.environ.get("VITCACHE_STAND_IN") or (None if spec is None else spec.origin)
    if path is None:
        raise RuntimeError("vitcache._stand_in is missing: this build is not complete")
    return path
