"""Order between streams: one leaves a fence, another waits for it, and the host waits for neither."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from vitcache.device.cuda_runtime import open_cuda_runtime

if TYPE_CHECKING:
    from vitcache._native import CudaRuntime
    from vitcache._native import Event as NativeEvent


class Event:
    """A `torch.cuda.Event` that may be asked and waited for while another thread captures a CUDA graph.

    torch's own `query` and `synchronize` would break that capture (pytorch pull request 104555).

    Parameters
    ----------
    blocking, external
        As torch has them.
    """

    __slots__ = ("_event",)

    def __init__(self, *, blocking: bool = False, external: bool = False) -> None:
        self._event = torch.cuda.Event(blocking=blocking, external=external)

    def record(self, stream: torch.cuda.Stream) -> None:
        """Mark what `stream` has been given so far."""
        self._event.record(stream)

    def wait(self, stream: torch.cuda.Stream) -> None:
        """Let what `stream` is given from now on run after what was marked last."""
        self._event.wait(stream)

    def query(self) -> bool:
        """Whether that is done."""
        event = self._native_event()
        done: bool = self._event.query() if event is None else _runtime().is_done(event)
        return done

    def synchronize(self) -> None:
        """Block until it is."""
        event = self._native_event()
        if event is None:
            self._event.synchronize()
        else:
            _runtime().synchronize(event)

    def _native_event(self) -> NativeEvent | None:
        """The event as our runtime takes it. None where there is no runtime, or no mark yet: then torch is
        asked.
        """
        handle: int = self._event.cuda_event if _runtime().available else 0
        return _native_event_class()(handle) if handle else None


@cache
def _native_event_class() -> type[NativeEvent]:
    # Imported when it is asked for: the CPU's timeline and the content keys work without the native module.
    from vitcache._native import Event as NativeEvent

    return NativeEvent


@cache
def _runtime() -> CudaRuntime:
    return open_cuda_runtime()


class Fence(NamedTuple):
    """A point in the work of one stream. `event` is None where there is nothing to wait for: on the CPU."""

    stream: Hashable
    event: Any


class Timeline(Protocol):
    """The streams of one device as the cache sees them. Any thread may call; only `finish` and `synchronize`
    block.

    `copy_stream` is one of the cache's own, for copies that nobody who puts or places is to wait for.
    """

    copy_stream: Hashable

    def on_copy_stream(self) -> AbstractContextManager[object]:
        """Make `copy_stream` the calling thread's current stream meanwhile."""

    def current(self) -> Hashable:
        """Return the calling thread's current stream. Equal streams run their work in order."""

    def record(self, stream: Hashable) -> Fence:
        """Return a fence behind all work that `stream` has been given so far."""

    def wait(self, fence: Fence) -> None:
        """Let what the current stream is given from now on run after `fence`."""

    def wait_on_host(self, fence: Fence) -> None:
        """Block until `fence` was passed."""

    def synchronize(self) -> None:
        """Block until all work of the device is done."""


class CpuTimeline:
    """The CPU as one stream that is always done."""

    copy_stream: Hashable = "cpu"

    def on_copy_stream(self) -> AbstractContextManager[object]:
        """Do nothing."""
        return nullcontext()

    def current(self) -> Hashable:
        """Return the only stream."""
        return "cpu"

    def record(self, stream: Hashable) -> Fence:
        """Return a fence that has been passed."""
        return Fence(stream, None)

    def wait(self, fence: Fence) -> None:
        """Do nothing."""

    def wait_on_host(self, fence: Fence) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""


class CudaTimeline:
    """The streams of one CUDA device, which need not be the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch hands out the same few streams again and again; few ask for one of high priority.
        self._side_stream = torch.cuda.Stream(device, priority=-1)
        self.copy_stream: Hashable = self._side_stream.cuda_stream
        self._streams: dict[Hashable, torch.cuda.Stream] = {self.copy_stream: self._side_stream}

    def on_copy_stream(self) -> AbstractContextManager[object]:
        """Make the copy stream current, and its device."""
        return torch.cuda.stream(self._side_stream)

    def current(self) -> Hashable:
        """Return the handle of the calling thread's current stream of this device."""
        stream = torch.cuda.current_stream(self._device)
        # The handle, because comparing two streams of torch takes longer than placing a row.
        handle: int = stream.cuda_stream
        self._streams[handle] = stream
        return handle

    def record(self, stream: Hashable) -> Fence:
        """Return an event recorded on `stream`, which was current once."""
        event = Event(blocking=True)  # a host thread that waits for it, as for checksums, sleeps
        event.record(self._streams[stream])
        return Fence(stream, event)

    def wait(self, fence: Fence) -> None:
        """Queue a wait for the event on the current stream of this device."""
        fence.event.wait(torch.cuda.current_stream(self._device))

    def wait_on_host(self, fence: Fence) -> None:
        """Block until the event was passed."""
        fence.event.synchronize()

    def synchronize(self) -> None:
        """Block until all streams of this device are done."""
        torch.cuda.synchronize(self._device)


def record_event(device: torch.device) -> Any:
    """Return an event behind all work of the current stream of a CUDA device; None on the CPU."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of `device` records a CUDA graph instead of running its work."""
    if device.type != "cuda":
        return False
    # torch can only ask about the current device. To change it takes longer than the question, and each
    # placement asks, so it is changed only where it is another one.
    if device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def make_timeline(device: torch.device) -> Timeline:
    """Return the timeline of a CPU or CUDA device."""
    return CudaTimeline(device) if device.type == "cuda" else CpuTimeline()
