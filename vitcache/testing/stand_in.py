"""The stand-in for the CUDA runtime under control: stopped, made to fail, and counted.

The controls act on the whole process; csrc/stand_in/faults.h says what each does. They are in builds for
tests only, not in a wheel: `make setup` makes one, and `VITCACHE_STAND_IN` names the file of another.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec


class Counts(ctypes.Structure):
    """Calls that wait for the device and copies done, since the reset; what is alive, by number or bytes.

    `locking_devices` has a bit for each device that was current while memory was page-locked.
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
    """Start the counts anew, end every failure, limit and pause, and leave one device."""
    _library().vitcache_stand_in_reset()


def count() -> Counts:
    """Return all counts."""
    counts: Counts = _library().vitcache_stand_in_count()
    return counts


def pause(paused: bool) -> None:
    """Let no stream do anything, or let them go on."""
    _library().vitcache_stand_in_pause(paused)


@contextmanager
def paused() -> Iterator[None]:
    """Let no stream do anything meanwhile."""
    pause(True)
    try:
        yield
    finally:
        pause(False)


def fail(entry: str, nth: int = 1, error: int = 999) -> None:
    """Let the `nth` next call of an entry point fail."""
    _library().vitcache_stand_in_fail(entry.encode(), nth, error)


def fail_copy(nth: int = 1) -> None:
    """Lose the device in the `nth` next copy."""
    _library().vitcache_stand_in_fail_copy(nth)


def set_devices(number: int) -> None:
    """Set the number of devices; `reset` leaves one."""
    _library().vitcache_stand_in_set_devices(number)


def limit_locked_bytes(limit: int) -> None:
    """Let no more than so many bytes be page-locked."""
    _library().vitcache_stand_in_limit_locked_bytes(limit)


def has_controls() -> bool:
    """Whether the library that is used was built for tests."""
    return hasattr(ctypes.CDLL(_path()), "vitcache_stand_in_reset")


@cache
def _library() -> ctypes.CDLL:
    if not has_controls():
        raise RuntimeError(
            f"{_path()} was built without VITCACHE_STAND_IN_FAULTS: it can neither be stopped nor counted"
        )
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
