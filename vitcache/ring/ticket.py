"""The tickets of copies through a pinned ring."""

from __future__ import annotations

from typing import Any

import torch

from vitcache import _native
from vitcache.arguments import to_int
from vitcache.errors import CudaError
from vitcache.handles import described, refuse_copies

MAX_HANDLE = (1 << 64) - 1  # of a stream: an address


class Ticket:
    """The handle of one copy through a `PinnedRing`, returned by `PinnedRing.copy_to`.

    If the copy failed, `wait`, `synchronize` and `done` raise the cause, a `CudaError`.

    Notes
    -----
    Any thread may use a ticket. You need not keep a ticket, and you may use it after its ring was closed. In
    a forked child only `wait_source_read` works, and it does not wait; the other methods raise RuntimeError.
    An exception of a signal handler, such as KeyboardInterrupt, ends a wait, and not the copy.

    Examples
    --------
    >>> import torch
    >>> from vitcache import PinnedRing
    >>> ring = PinnedRing(1 << 20, num_threads=1, backend="host")
    >>> src, dst = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    >>> ticket = ring.copy_to(dst, src)  # the copy is queued
    >>> ticket.wait_source_read()  # now `src` may change
    >>> ticket.synchronize()  # now `dst` is written
    >>> ticket.done, dst.tolist()
    (True, [0, 1, 2, 3])
    >>> ring.close()
    """

    __slots__ = ("_device", "_in_flight", "_native")

    def __init__(
        self, native: _native.Ticket, device: torch.device, in_flight: _native.CopiesInFlight
    ) -> None:
        self._native = native
        self._device = device
        self._in_flight = in_flight

    def wait(self, stream: Any = None) -> None:
        """Make work that is queued on `stream` from now on wait for the copy. The host does not wait.

        Parameters
        ----------
        stream
            A `torch.cuda.Stream` of any device, or the handle of a stream of the ring's device as an int.
            None: the current stream of the ring's device. Host backend: `stream` is ignored, and the host
            waits until the copy is complete.

        Raises
        ------
        TypeError
            If `stream` is not a `torch.cuda.Stream`, an int or None.
        CudaError
            If the copy failed.
        RuntimeError
            If `stream` is being captured in a CUDA graph. The capture stays valid.
        ValueError
            If `stream` is an int that cannot be a handle.
        """
        if self._device.type == "cuda":
            self._native.wait(as_native_stream("stream", stream, self._device))
        else:
            self.synchronize()

    def synchronize(self) -> None:
        """Wait on the host until the copy is complete.

        Raises
        ------
        CudaError
            If the copy failed.
        """
        self._native.synchronize()
        self._in_flight.reap()

    def wait_source_read(self) -> None:
        """Wait on the host until the source has been read. Then the source may change.

        The host waits for the ring's worker threads, not for the device. If the copy failed, this method
        raises nothing.
        """
        self._native.wait_source_read()
        self._in_flight.reap()

    @property
    def done(self) -> bool:
        """Whether the copy is complete; does not wait. Raises `CudaError` if the copy failed."""
        done = self._native.done
        if done:
            self._in_flight.reap()
        return done

    __reduce_ex__ = refuse_copies("it is the handle of one copy, and any thread may use it")

    @described
    def __repr__(self) -> str:
        try:
            return "done" if self._native.done else "in flight"
        except CudaError as error:
            return f"failed: {error}"


def as_native_stream(name: str, stream: Any, device: torch.device) -> _native.Stream:
    """Return the native form of the argument `name`, a stream: its handle and its device.

    A `torch.cuda.Stream` has a device. An int is the handle of a stream of `device`. None: the current stream
    of `device`.

    Raises
    ------
    TypeError
        If `stream` is not a `torch.cuda.Stream`, an int or None.
    ValueError
        If `stream` is an int that is negative or has more than 64 bits.
    """
    if stream is None:
        stream = torch.cuda.current_stream(device)
    if isinstance(stream, int) and not isinstance(stream, bool):
        return _native.Stream(to_int(name, stream, 0, MAX_HANDLE), device.index)
    handle, stream_device = getattr(stream, "cuda_stream", None), getattr(stream, "device", None)
    if not isinstance(handle, int) or not isinstance(stream_device, torch.device):
        raise TypeError(f"{name} must be a torch.cuda.Stream or an int, got {type(stream).__name__}")
    return _native.Stream(handle, stream_device.index)
