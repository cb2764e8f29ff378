"""The pinned ring: features from pageable memory to the device at the speed of its bus, never blocking."""

from __future__ import annotations

import math
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vitcache import _native
from vitcache.device import stand_in
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.errors import CudaError
from vitcache.ring.arguments import as_strided_view, check_destination
from vitcache.ring.idle_streams import give_stream_back, take_stream
from vitcache.ring.ticket import InFlight, Ticket, as_native_stream

if TYPE_CHECKING:
    import numpy as np

# Threads beyond these gave nothing more in the design's sketches: 38 GB/s with 8, 43 with 12, of 55.
MOST_DEFAULT_THREADS = 12
MOST_THREADS = 64
# 4 to 16 MiB did alike there; the smaller a piece, the sooner the first one is on its way.
PIECE_BYTES = 4 << 20
LEAST_BYTES = 256  # of a ring and of a piece: what slots are aligned to

_CASTS = {
    (torch.float32, torch.bfloat16): _native.Cast.float32_to_bfloat16,
    (torch.float32, torch.float16): _native.Cast.float32_to_float16,
}


class RingStats(NamedTuple):
    """What is in a ring, and what has gone through it.

    Attributes
    ----------
    capacity_bytes, used_bytes
        Of the ring; used are those of slots that have not retired.
    num_slots, num_unread
        Slots that have not retired, and those of them that are still being filled.
    copies, copied_bytes
        Since the ring was made, in bytes that go to the device.
    construction_seconds
        What it took to allocate and page-lock the memory.
    """

    capacity_bytes: int
    used_bytes: int
    num_slots: int
    num_unread: int
    copies: int
    copied_bytes: int
    construction_seconds: float


class PinnedRing:
    """Copies tensors from pageable memory to a device through page-locked memory, on a stream of its own.

    A copy is cut into pieces. Worker threads fill the ring with them, and cast on the way; the device fetches
    each as soon as it is there. `copy_to` returns when all is queued: it waits neither for the reading of the
    source nor for the device, only for room in the ring.

    Parameters
    ----------
    capacity_bytes
        Page-locked memory, allocated here, once, in whole pages: the attribute says how much it became.
        Copies in flight beyond that wait.
    num_threads
        Threads that fill. None: three quarters of the cores, 12 at most.
    backend
        ``"cuda"``; ``"host"``: to CPU memory, with threads in the place of streams, for machines without a
        GPU; ``"auto"``: the first if there is a CUDA device.
    device
        The CUDA device. None: the current one.
    piece_bytes
        The largest piece.

    Raises
    ------
    ValueError
        If a number is too small or too large, or the backend is unknown.
    TypeError
        If a number is no int.
    MemoryError
        If so much memory cannot be allocated or page-locked.
    CudaError
        If there is no CUDA runtime for ``"cuda"``, or it fails.

    Notes
    -----
    Any thread may call anything at any time, also while another one captures a graph. Copies made at once
    share the ring in turns, piece by piece. A forked child cannot use the ring: RuntimeError. At interpreter
    exit a ring closes itself.

    Until a worker has filled a piece the ring's stream waits for a value that the host will write, and CUDA
    calls that synchronise with the device stall as long. The workers depend on nothing but the source's
    memory, so that ends by itself.
    """

    def __init__(
        self,
        capacity_bytes: int,
        *,
        num_threads: int | None = None,
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        if num_threads is None:
            num_threads = default_num_threads()
        for name, value, least, most in (
            ("capacity_bytes", capacity_bytes, LEAST_BYTES, sys.maxsize),
            ("num_threads", num_threads, 1, MOST_THREADS),
            ("piece_bytes", piece_bytes, LEAST_BYTES, sys.maxsize),
        ):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, it is {value!r} of type {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} is {value}, it must be at least {least}")
            if value > most:
                raise ValueError(f"{name} is {value}, it must be at most {most}")
        self.device = _resolve(backend, device)
        self.num_threads = num_threads
        runtime = open_cuda_runtime() if self.device.type == "cuda" else stand_in.open_runtime()
        if not runtime.available:
            raise CudaError(f"backend is 'cuda' but there is no CUDA runtime: {'; '.join(runtime.searched)}")
        index = self.device.index or 0
        stream = take_stream(runtime, index) if self.device.type == "cuda" else None
        try:
            self._native = _native.Ring(runtime, capacity_bytes, num_threads, piece_bytes, index, stream)
        except BaseException:
            if stream is not None:
                give_stream_back(stream)
            raise
        self._in_flight = InFlight()
        # Also at exit: the workers must be gone before the interpreter is.
        self._close = weakref.finalize(self, _close, self._native, self._in_flight, self.device)
        self.capacity_bytes = self._native.stats().capacity_bytes
        self.stream: torch.cuda.Stream | None = None
        if stream is not None:
            self.stream = torch.cuda.ExternalStream(stream.handle, self.device)

    @property
    def backend(self) -> str:
        """``"cuda"`` or ``"host"``."""
        return "cuda" if self.device.type == "cuda" else "host"

    def copy_to(
        self, dst: Tensor, src: Tensor | np.ndarray, *, after: Any = None, timeout_s: float | None = None
    ) -> Ticket:
        """Order a copy of `src` to `dst`.

        Parameters
        ----------
        dst
            A contiguous tensor on the ring's device (host backend: on the CPU).
        src
            A CPU tensor or NumPy array of the same shape, with any strides. Of the same dtype; or float32
            for a bfloat16 or float16 `dst`, which is rounded to nearest even. It is kept alive, and must not
            change until it was read: see `Ticket.wait_source_read`. So is the buffer that an array was made
            over: until then shared memory cannot be closed (BufferError).
        after
            The `torch.cuda.Stream` of the ring's device, or its handle as an int. The work that it has been
            given so far precedes the write to `dst`.
            None: the current stream of the ring's device. (Host backend: ignored.)
        timeout_s
            Seconds to wait for room in the ring. None: as long as it takes. A copy that is larger than the
            ring waits for its own pieces.

        Returns
        -------
        Ticket
            If the copy cannot be queued, the ticket raises the cause; the ring goes on.

        Raises
        ------
        TypeError
            If one is of another type, or their dtypes are no such pair.
        ValueError
            If shapes differ, `dst` is not contiguous, one is on another device, or requires gradients.
        TimeoutError
            If there was no room in time. Nothing can be said of the content of `dst` then.
        RuntimeError
            If the ring was closed, the process was forked, or `after` is being captured in a CUDA graph.

        Notes
        -----
        `dst` may be freed at once: torch's allocator is told that the ring's stream uses it.
        """
        check_destination(dst, self.device)
        source = as_strided_view(src)
        if source.shape != tuple(dst.shape):
            raise ValueError(f"src has shape {source.shape}, dst has {tuple(dst.shape)}")
        cast = _native.Cast.none if source.dtype == dst.dtype else _CASTS.get((source.dtype, dst.dtype))
        if cast is None:
            raise TypeError(
                f"src is {source.dtype}, dst is {dst.dtype}: only float32 is cast, to bfloat16 or float16"
            )
        if timeout_s is not None and not isinstance(timeout_s, Real):
            raise TypeError(f"timeout_s must be a number of seconds, it is {type(timeout_s).__name__}")
        if timeout_s is not None and not (timeout_s >= 0 and math.isfinite(timeout_s)):
            raise ValueError(f"timeout_s is {timeout_s}, it must be finite and at least 0")
        if isinstance(after, torch.cuda.Stream) and after.device != self.device:
            raise ValueError(f"after is a stream of {after.device}, the ring copies to {self.device}")
        behind = None if self.stream is None else as_native_stream(after, self.device)
        if self.stream is not None:
            dst.record_stream(self.stream)
        if not dst.is_inference():
            torch.autograd.graph.increment_version(dst)
        ticket = self._native.make_ticket()
        entry = (ticket, source.owner, dst if self.stream is None else None)
        try:
            self._native.copy(
                ticket,
                dst.data_ptr(),
                source.address,
                source.element_bytes,
                source.shape,
                source.strides,
                cast,
                behind,
                timeout_s,
            )
        finally:  # also of a copy that was given up, part of which is on its way
            self._in_flight.append(entry)
            self._in_flight.reap()
        return Ticket(ticket, self.device, self._in_flight)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let no slot retire meanwhile: for tests, and to measure what a full ring does."""
        self._native.hold()
        try:
            yield
        finally:
            self._native.release()

    def stats(self) -> RingStats:
        """Return what is in the ring now.

        Raises
        ------
        RuntimeError
            If the ring was closed.
        """
        stats = self._native.stats()
        return RingStats(*(getattr(stats, name) for name in RingStats._fields))

    def check_integrity(self) -> None:
        """Raise RuntimeError if slots overlap or are out of order."""
        self._native.check_integrity()

    def close(self) -> None:
        """Wait for all copies, and give the memory back. A second call does nothing.

        Threads that wait for room get a RuntimeError. Tickets stay as they are.
        """
        self._close()

    def __enter__(self) -> PinnedRing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"PinnedRing({self.capacity_bytes}, num_threads={self.num_threads}, backend={self.backend!r}, "
            f"device={str(self.device)!r})"
        )


def default_num_threads() -> int:
    """Three quarters of the cores that this process may use, 12 at most."""
    cores = len(os.sched_getaffinity(0))
    return min(MOST_DEFAULT_THREADS, max(1, cores - cores // 4))


def _resolve(backend: str, device: torch.device | str | int | None) -> torch.device:
    if backend not in ("auto", "cuda", "host"):
        raise ValueError(f"backend is {backend!r}, it must be one of 'auto', 'cuda', 'host'")
    if backend == "auto":
        backend = "cuda" if torch.cuda.is_available() else "host"
    if backend == "host":
        if device is not None and torch.device(device).type != "cpu":
            raise ValueError(f"device is {device}, a ring of the host backend copies to the CPU")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise CudaError("backend is 'cuda' but torch finds no CUDA device")
    chosen = torch.device("cuda") if device is None else torch.device(device)
    if chosen.type != "cuda":
        raise ValueError(f"device is {chosen}, a ring of the CUDA backend copies to a CUDA device")
    return torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)


def _close(ring: _native.Ring, in_flight: InFlight, device: torch.device) -> None:
    ring.close()
    in_flight.clear()
    if device.type == "cuda":
        give_stream_back(ring.stream)
