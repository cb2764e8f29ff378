"""Controls of the stand-in for the CUDA runtime: pause its streams, make calls fail, count and record calls.

The controls act on the whole process. csrc/stand_in/faults.h describes each control. Only builds for tests
contain the controls; wheels do not. `make setup` builds a library with controls. `VITCACHE_STAND_IN` selects
another library.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Call:
    """A recorded call of an entry point.

    `stream` and `event` number the streams and events from 0, in the order in which they first occur in the
    record; -1 if the call has none. `bytes` counts the bytes that the call copies or pins, and `copies` the
    ranges that it copies: more than one in a batch or a 2-D copy. `handle` is the stream as the caller passed
    it; comparisons ignore it.
    """

    entry: str
    stream: int = -1
    event: int = -1
    bytes: int = 0
    copies: int = 0
    handle: int = field(default=0, compare=False)


class _NativeCall(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_char_p),
        ("stream", ctypes.c_int64),
        ("handle", ctypes.c_void_p),
        ("event", ctypes.c_int64),
        ("bytes", ctypes.c_uint64),
        ("copies", ctypes.c_uint64),
    ]


def reset() -> None:
    """Set the counts to zero, end failures, limits, pauses, captures and the record, and set one device."""
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


@contextmanager
def recorded_calls() -> Iterator[list[Call]]:
    """Record the calls of all threads inside the context. The list is empty until the context ends.

    A call is recorded when it succeeds in queueing its work or begins to wait; queries are recorded, too.
    Calls that set a device or a mode, and calls that create or destroy, are not recorded.
    """
    library = _library()
    calls: list[Call] = []
    library.vitcache_stand_in_record_calls(1)
    try:
        yield calls
    finally:
        library.vitcache_stand_in_record_calls(0)
        number = library.vitcache_stand_in_recorded_calls(None, 0)
        recorded = (_NativeCall * number)()
        library.vitcache_stand_in_recorded_calls(recorded, number)
        calls.extend(
            Call(call.entry.decode(), call.stream, call.event, call.bytes, call.copies, call.handle or 0)
            for call in recorded
        )


def fail(entry: str, nth: int = 1, error: int = 999) -> None:
    """Make the `nth` call from now of entry point `entry` fail with `error`."""
    _library().vitcache_stand_in_fail(entry.encode(), nth, error)


def fail_copy(nth: int = 1) -> None:
    """Make the `nth` copy from now fail when it is executed. All devices are then lost until `reset`."""
    _library().vitcache_stand_in_fail_copy(nth)


def begin_capture(stream: int, mode: int = 0) -> int:
    """Begin to capture the stream of handle `stream`, and return the error, or 0.

    `mode` is 0 (global), 1 (thread-local) or 2 (relaxed). Handle 2 is the calling thread's default stream.
    """
    error: int = _library().vitcache_stand_in_begin_capture(stream, mode)
    return error


def end_capture(stream: int) -> tuple[int, int]:
    """End the capture of a stream. Return the error, and the number of captured calls.

    Records and waits of events are not counted. The number is 0 if there is an error.
    """
    captured = ctypes.c_uint64()
    error: int = _library().vitcache_stand_in_end_capture(stream, ctypes.byref(captured))
    return error, captured.value


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
    library.vitcache_stand_in_begin_capture.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.vitcache_stand_in_end_capture.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64)]
    library.vitcache_stand_in_recorded_calls.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.vitcache_stand_in_recorded_calls.restype = ctypes.c_size_t
    return library


def _path() -> str:
    spec = find_spec("vitcache._stand_in")
    path = os.environ.get("VITCACHE_STAND_IN") or (None if spec is None else spec.origin)
    if path is None:
        raise RuntimeError("vitcache._stand_in is missing: this build is not complete")
    if not os.path.isabs(path):
        raise RuntimeError(f"VITCACHE_STAND_IN is {path!r}, it must be an absolute path")
    return path
