"""Order between streams: a fence is recorded on one stream and another stream waits for it.

The host does not wait, except in `Event.synchronize`, `Timeline.wait_on_host` and `Timeline.synchronize`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from vitcache.device.cuda_runtime import open_cuda_runtime

if TYPE_CHECKING:
    from vitcache._native import CudaRuntime
    from vitcache._native import Event as NativeEvent


class Event:
    """A `torch.cuda.Event` for a process in which another thread may be capturing a CUDA graph.

    `query` and `synchronize` of a torch event would break that capture (pytorch pull request 104555). This
    class calls the CUDA runtime through our native module instead.

    Parameters
    ----------
    blocking, external
        As in `torch.cuda.Event`.
    timing
        Whether `ms_since` may be called: `enable_timing` of `torch.cuda.Event`.
    """

    __slots__ = ("_event",)

    def __init__(self, *, blocking: bool = False, external: bool = False, timing: bool = False) -> None:
        self._event = torch.cuda.Event(enable_timing=timing, blocking=blocking, external=external)

    def record(self, stream: torch.cuda.Stream) -> None:
        """Record the event behind all work that is queued on `stream`."""
        self._event.record(stream)

    def wait(self, stream: torch.cuda.Stream) -> None:
        """Make later work of `stream` wait for the event. The host does not wait."""
        self._event.wait(stream)

    def query(self) -> bool:
        """Whether the event is complete. An event that was never recorded is complete."""
        event = self._native_event()
        is_complete: bool = self._event.query() if event is None else _runtime().is_done(event)
        return is_complete

    def has_passed(self) -> bool:
        """Whether the event is known to be complete. False if our native module found no CUDA runtime."""
        event = self._native_event()
        return event is not None and _runtime().is_done(event)

    def synchronize(self) -> None:
        """Block the calling thread until the event is complete."""
        event = self._native_event()
        if event is None:
            self._event.synchronize()
        else:
            _runtime().synchronize(event)

    def ms_since(self, start: Event) -> float:
        """Return the milliseconds between two events with timing, which are complete."""
        return float(start._event.elapsed_time(self._event))

    def _native_event(self) -> NativeEvent | None:
        """Return the event for our native module, or None if torch must be called instead.

        Returns None if our module found no CUDA runtime. Also returns None before the first `record`, which
        creates the handle.
        """
        handle: int = self._event.cuda_event if _runtime().available else 0
        return _native_event_class()(handle) if handle else None


@cache
def _native_event_class() -> type[NativeEvent]:
    # Imported on use: `CpuTimeline` and content keys must work without the native module.
    from vitcache._native import Event as NativeEvent

    return NativeEvent


@cache
def _runtime() -> CudaRuntime:
    return open_cuda_runtime()


PER_THREAD_STREAM = 2  # the handle cudaStreamPerThread


def check_names_one_stream(stream: torch.cuda.Stream) -> None:
    """Refuse cudaStreamPerThread: its handle names another stream in each thread.

    A fence is recorded later, and may be recorded by another thread. So a handle must name the same stream
    in all threads.

    Raises
    ------
    RuntimeError
        If `stream` is cudaStreamPerThread.
    """
    if stream.cuda_stream == PER_THREAD_STREAM:
        raise RuntimeError(
            f"the current stream of {stream.device} is cudaStreamPerThread (handle 2), which is another "
            "stream in each thread: make a torch.cuda.Stream current"
        )


def check_current_stream(device: torch.device) -> None:
    """Refuse cudaStreamPerThread as the calling thread's current stream of a CUDA device."""
    if device.type == "cuda":
        check_names_one_stream(torch.cuda.current_stream(device))


# The stream of the CPU: its work is complete when the call that queued it returns (csrc/cache/fence.h).
CPU_STREAM = -1


class Fence(NamedTuple):
    """A recorded point of one stream. On the CPU `event` is None, and the fence is always complete."""

    stream: int
    event: Any


class Timeline(Protocol):
    """The streams of one device, as the cache uses them. A stream is named by its handle.

    Any thread may call. Only `wait_on_host` and `synchronize` block. The cache copies to the host tier on
    `copy_stream`, in parallel with the work of the callers' streams.
    """

    copy_stream: int

    def on_copy_stream(self) -> AbstractContextManager[object]:
        """Return a context in which `copy_stream` is the calling thread's current stream."""

    def current(self) -> int:
        """Return the calling thread's current stream. Work on equal streams runs in order."""

    def record(self, stream: int) -> Fence:
        """Return a fence behind all work that is queued on `stream`."""

    def wait(self, fence: Fence) -> bool | None:
        """Make later work of the current stream wait for `fence`.

        Returns True if the fence was complete, so that no stream has to wait for it any more.
        """

    def wait_on_host(self, fence: Fence) -> None:
        """Block until `fence` is complete."""

    def synchronize(self) -> None:
        """Block until all work of the device is complete."""


class CpuTimeline:
    """The CPU as one stream, whose work is complete when the call that queued it returns."""

    copy_stream = CPU_STREAM

    def on_copy_stream(self) -> AbstractContextManager[object]:
        """Do nothing."""
        return nullcontext()

    def current(self) -> int:
        """Return the only stream."""
        return CPU_STREAM

    def record(self, stream: int) -> Fence:
        """Return a complete fence."""
        return Fence(stream, None)

    def wait(self, fence: Fence) -> bool:
        """Return True: the fence is complete."""
        return True

    def wait_on_host(self, fence: Fence) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""


class CudaTimeline:
    """The streams of one CUDA device, which need not be the current device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch returns streams from small pools, one for each priority. Few libraries use the high-priority
        # pool, so this stream is rarely shared.
        self._side_stream = torch.cuda.Stream(device, priority=-1)
        self.copy_stream: int = self._side_stream.cuda_stream
        self._streams: dict[int, torch.cuda.Stream] = {self.copy_stream: self._side_stream}

    def on_copy_stream(self) -> AbstractContextManager[object]:
        """Return a context in which the copy stream and its device are current."""
        return torch.cuda.stream(self._side_stream)

    def current(self) -> int:
        """Return the handle of the calling thread's current stream of this device.

        Raises
        ------
        RuntimeError
            If that stream is cudaStreamPerThread.
        """
        stream = torch.cuda.current_stream(self._device)
        # Returns the handle, because comparing two torch streams takes longer than placing a row.
        handle: int = stream.cuda_stream
        if handle == PER_THREAD_STREAM:
            check_names_one_stream(stream)
        self._streams[handle] = stream
        return handle

    def record(self, stream: int) -> Fence:
        """Return an event that is recorded on `stream`. `current` must have returned `stream` before."""
        event = Event(blocking=True)  # the checksum thread sleeps while it waits for a copy
        event.record(self._streams[stream])
        return Fence(stream, event)

    def wait(self, fence: Fence) -> bool:
        """Queue a wait for the event on the current stream of this device, unless the event is complete."""
        if fence.event.has_passed():  # takes less time than a wait
            return True
        fence.event.wait(torch.cuda.current_stream(self._device))
        return False

    def wait_on_host(self, fence: Fence) -> None:
        """Block until the event is complete."""
        fence.event.synchronize()

    def synchronize(self) -> None:
        """Block until all work of this device is complete."""
        torch.cuda.synchronize(self._device)


def record_event(device: torch.device) -> Any:
    """Return an event behind all work of the current stream of a CUDA device, or None on the CPU."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the calling thread's current stream of `device`."""
    if device.type != "cuda":
        return False
    # torch reports on the current device only. Every placement calls this function, and changing the device
    # takes longer than the query, so the device is changed only if necessary.
    if device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def make_timeline(device: torch.device) -> Timeline:
    """Return the timeline of a CPU or CUDA device."""
    return CudaTimeline(device) if device.type == "cuda" else CpuTimeline()
