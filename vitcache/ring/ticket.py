"""What is known of a copy through a pinned ring, and what the copy needs until it is over."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vitcache import _native


class InFlight(deque[tuple[_native.Ticket, Any, Tensor | None]]):
    """Tickets of a ring's copies, oldest first, with what these read and write, which lives as long.

    A copy is entered once it is queued: its ticket knows nothing before. No destination: only the source is
    kept, the destination's memory being safe otherwise. Any thread may use it; there is no lock, which a
    forked child might find taken.
    """

    def reap(self) -> None:
        """Let go of what is not needed any more."""
        with suppress(IndexError, ValueError):  # empty, or another thread was faster
            while True:
                ticket, _, dst = entry = self[0]
                if not (ticket.source_read if dst is None else ticket.is_over):
                    return
                self.remove(entry)


class Ticket:
    """A copy that was ordered: others can be ordered after it.

    Made by `PinnedRing.copy_to`. Any thread may use it; it may be dropped, and may outlive the ring. What
    asks for the copy raises the cause, a `CudaError`, if that failed. In a forked child only
    `wait_source_read` can be asked, and returns at once.
    """

    __slots__ = ("_device", "_in_flight", "_native")

    def __init__(self, native: _native.Ticket, device: torch.device, in_flight: InFlight) -> None:
        self._native = native
        self._device = device
        self._in_flight = in_flight

    def wait(self, stream: Any = None) -> None:
        """Let what a stream is given from now on run after the copy. The host does not wait.

        Parameters
        ----------
        stream
            A `torch.cuda.Stream` of any device, or the handle of a stream of the ring's device as an int.
            None: the current stream of the ring's device. A ring of the host backend has no streams to wait:
            then the host does.
        """
        if self._device.type == "cuda":
            self._native.wait(as_native_stream(stream, self._device))
        else:
            self.synchronize()

    def synchronize(self) -> None:
        """Wait on the host until the copy is over."""
        self._native.synchronize()
        self._in_flight.reap()

    def wait_source_read(self) -> None:
        """Wait on the host until the source was read, and may change: for the ring's threads, not the device.

        Raises nothing if the copy failed.
        """
        self._native.wait_source_read()
        self._in_flight.reap()

    @property
    def done(self) -> bool:
        """Whether the copy is over; never waits."""
        done = self._native.done
        if done:
            self._in_flight.reap()
        return done


def as_native_stream(stream: Any, device: torch.device) -> _native.Stream:
    """Return a stream as the native side takes it: a handle together with the device that it belongs to.

    A `torch.cuda.Stream` knows its device; an int is the handle of a stream of `device`. None: the current
    stream of `device`.

    Raises
    ------
    TypeError
        If `stream` is neither a `torch.cuda.Stream`, an int, nor None.
    """
    if stream is None:
        stream = torch.cuda.current_stream(device)
    if isinstance(stream, int) and not isinstance(stream, bool):
        return _native.Stream(stream, device.index)
    handle, its_device = getattr(stream, "cuda_stream", None), getattr(stream, "device", None)
    if not isinstance(handle, int) or not isinstance(its_device, torch.device):
        raise TypeError(f"stream must be a torch.cuda.Stream or an int, it is {type(stream).__name__}")
    return _native.Stream(handle, its_device.index)
