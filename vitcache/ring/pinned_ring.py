"""The pinned ring: asynchronous copies from pageable memory to the device."""

from __future__ import annotations

import os
import sys
import weakref
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vitcache import _native
from vitcache.arguments import shown, to_bytes, to_int, to_timeout
from vitcache.device import stand_in
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.errors import CudaError
from vitcache.handles import describe_count, describe_use, described, refuse_copies
from vitcache.ring.arguments import as_strided_view, check_destination
from vitcache.ring.idle_streams import give_stream_back, take_stream
from vitcache.ring.ticket import Ticket, as_native_stream

if TYPE_CHECKING:
    import numpy as np

# In the design's sketches 8 threads reached 38 GB/s and 12 threads 43 GB/s, on a bus with 55 GB/s. More than
# 12 threads were not faster.
MAX_DEFAULT_THREADS = 12
MAX_THREADS = 64
# Pieces of 4 to 16 MiB were equally fast in the sketches. The copy of a smaller first piece begins earlier.
PIECE_BYTES = 4 << 20
MIN_BYTES = 256  # minimum of `capacity_bytes` and `piece_bytes`: the alignment of slots
MAX_DEVICE_INDEX = 127  # of torch
MAX_SLOTS = 1024  # SlotFlags::kCount: most slots that have not retired

_CASTS = {
    (torch.float32, torch.bfloat16): _native.Cast.float32_to_bfloat16,
    (torch.float32, torch.float16): _native.Cast.float32_to_float16,
}


class RingStats(NamedTuple):
    """The current state of a `PinnedRing`, and its totals since its construction.

    Attributes
    ----------
    capacity_bytes
        Size of the ring.
    used_bytes
        Bytes of slots that have not retired, and the bytes skipped so that no slot wraps around the end.
    num_slots
        Slots that have not retired.
    num_unread
        Slots that the workers have not filled yet: their parts of the source must not change.
    copies
        Calls of `copy_to`.
    copied_bytes
        Bytes of all pieces so far, in the destination's dtype.
    construction_seconds
        Time in seconds that the constructor took to allocate and page-lock the memory.

    Examples
    --------
    >>> import torch
    >>> from vitcache import PinnedRing
    >>> with PinnedRing(1 << 20, num_threads=1, backend="host") as ring, ring.hold():
    ...     ring.copy_to(torch.zeros(1024), torch.ones(1024)).synchronize()
    ...     stats = ring.stats()
    >>> stats.num_slots, stats.used_bytes, stats.copies, stats.copied_bytes
    (1, 4096, 1, 4096)
    """

    capacity_bytes: int
    used_bytes: int
    num_slots: int
    num_unread: int
    copies: int
    copied_bytes: int
    construction_seconds: float


class PinnedRing:
    """Copies tensors from pageable memory to a device, through pinned memory and on a stream of its own.

    A copy is cut into pieces. Worker threads write the pieces to slots of the ring, and cast them if the
    destination has another dtype than the source. The ring's stream copies a piece to the device as soon as
    the workers have written it. `copy_to` returns when all pieces are queued. If the ring does not have
    enough free bytes, `copy_to` waits for earlier copies; otherwise it does not wait.

    Parameters
    ----------
    capacity_bytes
        Bytes of pinned memory, an int or a str such as ``"256MiB"``, rounded up to whole memory pages and
        allocated at construction. The attribute `capacity_bytes` is the rounded number.
    num_threads
        Number of worker threads. None: three quarters of the cores that the process may use, rounded up, at
        most 12.
    backend
        ``"cuda"``: copies to a CUDA device. ``"host"``: copies to CPU memory, with threads in place of
        streams, for machines without a GPU. ``"auto"``: ``"cuda"`` if torch finds a CUDA device, else
        ``"host"``.
    device
        The CUDA device. None: the current device.
    piece_bytes
        Maximum size of a piece in bytes, an int or a str.

    Raises
    ------
    TypeError
        If `num_threads` is not an int, `capacity_bytes` or `piece_bytes` is neither an int nor a str,
        `backend` is not a str, or `device` is not a device, a str or an int. A bool is not an int.
    ValueError
        If `capacity_bytes` or `piece_bytes` is less than 256 or not a size in bytes, `num_threads` is not
        between 1 and 64, `backend` is unknown, or `device` is not a device of the backend.
    MemoryError
        If `capacity_bytes` is more than the host has available, or cannot be page-locked.
    RuntimeError
        If the process cannot start `num_threads` threads.
    CudaError
        If the backend is ``"cuda"`` and torch finds no CUDA device or no CUDA runtime can be opened, if a
        CUDA call fails, or if the process was forked from a process that used rings of the host backend.

    Notes
    -----
    Any thread may call any method at any time, also while another thread captures a CUDA graph, and also in
    a signal handler or a `__del__` that interrupts another method; only `close` raises RuntimeError there if
    it would wait for a `copy_to` that it interrupts. Copies of several threads take turns, piece by piece.
    In a forked child the ring cannot be used: its methods, except `close`, raise RuntimeError. A ring is
    closed at the exit of the interpreter.

    An exception of a signal handler, such as KeyboardInterrupt, ends every wait, and the ring still works.
    If it ends `copy_to`, pieces that are queued are still copied, and the content of `dst` is undefined. If
    it ends `close`, the ring accepts no copies, and a second `close` does the rest.

    The ring's stream waits until the workers have written a piece. During this wait, a CUDA call that
    synchronizes with the device does not return. The wait always ends: the workers need only the memory of
    `src`.

    Examples
    --------
    >>> import torch
    >>> from vitcache import PinnedRing
    >>> pixels = torch.tensor([0.5, 1.0, 1.5])
    >>> dst = torch.empty(3, dtype=torch.bfloat16)
    >>> with PinnedRing(1 << 20, num_threads=1, backend="host") as ring:
    ...     ticket = ring.copy_to(dst, pixels)  # does not wait; the workers cast to bfloat16
    ...     ticket.wait()  # "cuda": the current stream waits, the host does not
    >>> dst.tolist()
    [0.5, 1.0, 1.5]
    """

    def __init__(
        self,
        capacity_bytes: int | str,
        *,
        num_threads: int | None = None,
        backend: str = "auto",
        device: torch.device | str | int | None = None,
        piece_bytes: int | str = PIECE_BYTES,
    ) -> None:
        if num_threads is None:
            num_threads = default_num_threads()
        capacity_bytes = to_bytes("capacity_bytes", capacity_bytes, MIN_BYTES)
        num_threads = to_int("num_threads", num_threads, 1, MAX_THREADS)
        piece_bytes = to_bytes("piece_bytes", piece_bytes, MIN_BYTES)
        for name, value in (("capacity_bytes", capacity_bytes), ("piece_bytes", piece_bytes)):
            if value > sys.maxsize:
                raise ValueError(f"{name} is {shown(value)}, it must be at most {sys.maxsize}")
        self.device = _resolve_device(backend, device)
        self.num_threads = num_threads
        runtime = open_cuda_runtime() if self.device.type == "cuda" else stand_in.open_runtime()
        if not runtime.available:
            raise CudaError(f"backend is 'cuda' but no CUDA runtime was found: {'; '.join(runtime.searched)}")
        index = self.device.index or 0
        stream = take_stream(runtime, index) if self.device.type == "cuda" else None
        try:
            self._native = _native.Ring(runtime, capacity_bytes, num_threads, piece_bytes, index, stream)
        except BaseException as error:
            if stream is not None:
                give_stream_back(stream)
            if isinstance(error, MemoryError):
                raise MemoryError(f"capacity_bytes is {capacity_bytes}: {error}") from error
            raise
        # Also runs at interpreter exit: the worker threads must end before the interpreter does.
        self._close = weakref.finalize(self, _close, self._native, self.device)
        self.capacity_bytes = self._native.stats().capacity_bytes
        self._piece_bytes = min(-(-piece_bytes // MIN_BYTES) * MIN_BYTES, self.capacity_bytes)
        self.stream: torch.cuda.Stream | None = None
        if stream is not None:
            self.stream = torch.cuda.ExternalStream(stream.handle, self.device)

    @property
    def backend(self) -> str:
        """The backend in use: ``"cuda"`` or ``"host"``."""
        return "cuda" if self.device.type == "cuda" else "host"

    def copy_to(
        self, dst: Tensor, src: Tensor | np.ndarray, *, after: Any = None, timeout_s: float | None = None
    ) -> Ticket:
        """Queue a copy of `src` to `dst`.

        Parameters
        ----------
        dst
            A contiguous tensor of any shape on the ring's device (host backend: on the CPU).
        src
            A CPU tensor or NumPy array of the same shape, with any strides. `src` has the dtype of `dst`, or
            is float32 if `dst` is bfloat16 or float16. In the second case its values are rounded to nearest
            even. The ring keeps `src` alive until it has been read (`Ticket.wait_source_read`). Until then
            `src` must not change, and shared memory under an array cannot be closed (BufferError).
        after
            A `torch.cuda.Stream` of the ring's device, or its handle as an int. The ring writes `dst` after
            all work that was queued on this stream before the call. None: the current stream of the ring's
            device. Host backend: ignored.
        timeout_s
            Maximum time in seconds to wait for free bytes in the ring. None: no limit. If a copy is larger
            than the ring, its last pieces wait for its first pieces.

        Returns
        -------
        Ticket
            The handle of the copy. If a CUDA call of the copy fails, methods of the ticket raise the error.
            The ring still accepts other copies.

        Raises
        ------
        TypeError
            If `dst` is not a tensor, `src` is not a tensor or a NumPy array, the dtypes are neither equal nor
            float32 to bfloat16 or float16, `after` is not a stream, or `timeout_s` is not a number.
        ValueError
            If the shapes differ, `dst` is not dense and contiguous, `dst` or `after` is not on the ring's
            device, `src` is not on the CPU, `dst` or `src` requires gradients in grad mode or has elements
            outside of its storage, or `timeout_s` is negative or not finite.
        TimeoutError
            If the ring does not have enough free bytes after `timeout_s`. Then the content of `dst` is
            undefined, and the pieces that are queued are still copied.
        RuntimeError
            If the ring was closed, the process was forked, or `after` is being captured in a CUDA graph.

        Notes
        -----
        `dst` may be freed immediately: the ring calls ``dst.record_stream`` with its stream, so torch's
        allocator reuses the memory only after the copy. The host backend keeps `dst` alive itself.
        """
        target = check_destination(dst, self.device)
        source = as_strided_view(src)
        if source.shape != tuple(target.shape):
            raise ValueError(f"src has shape {source.shape}, dst has {tuple(target.shape)}")
        cast = _native.Cast.none if source.dtype == target.dtype else _CASTS.get((source.dtype, target.dtype))
        if cast is None:
            raise TypeError(
                f"src is {source.dtype}, dst is {target.dtype}: only float32 is cast, to bfloat16 or float16"
            )
        timeout_s = to_timeout("timeout_s", timeout_s)
        if isinstance(after, torch.cuda.Stream) and after.device != self.device:
            raise ValueError(f"after is a stream of {after.device}, the ring copies to {self.device}")
        native_after = None if self.stream is None else as_native_stream("after", after, self.device)
        if self.stream is not None:
            target.record_stream(self.stream)
        if not target.is_inference():
            torch.autograd.graph.increment_version(target)
        # One call checks the storages again, keeps the memory alive and queues the copy. An interrupt cannot
        # separate these steps.
        ticket = self._native.copy(
            target,
            source.tensor,
            source.address,
            source.element_bytes,
            source.shape,
            source.strides,
            cast,
            native_after,
            timeout_s,
            source.owner,
            dst if self.stream is None else None,
        )
        return Ticket(ticket, self.device, self._native.in_flight)

    def has_free_bytes(self, num_bytes: int) -> bool:
        """Whether a copy of `num_bytes` bytes, in the destination's dtype, can be queued now without a wait.

        False also if the bytes fit only as long as no slot skips the end of the ring. If another thread
        reserves the free bytes meanwhile, `copy_to` waits.

        Raises
        ------
        TypeError
            If `num_bytes` is not an int, or is a bool.
        ValueError
            If `num_bytes` is negative.
        RuntimeError
            If the ring was closed, or the process was forked.

        Examples
        --------
        >>> import torch
        >>> from vitcache import PinnedRing
        >>> with PinnedRing(1 << 20, num_threads=1, backend="host") as ring, ring.hold():
        ...     before = ring.has_free_bytes(300_000)
        ...     ring.copy_to(torch.zeros(200_000), torch.ones(200_000)).synchronize()
        ...     before, ring.has_free_bytes(300_000)
        (True, False)
        """
        num_bytes = to_int("num_bytes", num_bytes, 0)
        stats = self._native.stats()
        pieces = -(-num_bytes // self._piece_bytes)
        # Slots are aligned. A slot does not wrap around the end of the ring: it may skip its own bytes.
        most_bytes = num_bytes + MIN_BYTES * pieces + min(num_bytes, self._piece_bytes)
        has_bytes = stats.used_bytes + most_bytes <= stats.capacity_bytes
        return bool(has_bytes and stats.num_slots + pieces <= MAX_SLOTS)

    def hold(self) -> AbstractContextManager[None]:
        """Return a context that puts the ring on hold: inside of the ``with`` block no slot retires.

        Use it in tests, and to measure a ring whose bytes are all in use. An interrupt cannot leave the ring
        on hold.
        """
        return self._native.hold()

    def stats(self) -> RingStats:
        """Return the current state and the totals of the ring.

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
        """Wait until all copies are complete, and free the memory. A second call does nothing.

        In threads that wait for free bytes, `copy_to` raises RuntimeError. Tickets remain usable.

        Raises
        ------
        RuntimeError
            If a signal handler or a `__del__` calls `close` while it interrupts a `copy_to` of this ring.
        """
        self._native.close()  # first: an interrupt may end it
        self._close()

    def __enter__(self) -> PinnedRing:
        if self._native.is_closed:
            raise RuntimeError("the ring was closed")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __reduce_ex__ = refuse_copies("it owns page-locked memory and threads; make another ring")

    @described
    def __repr__(self) -> str:
        if self._native.is_closed:
            return "closed"
        stats = self._native.stats()
        use = describe_use(stats.used_bytes, stats.capacity_bytes)
        return f"{self.device}, {use} in use, {describe_count(self.num_threads, 'thread')}"


def default_num_threads() -> int:
    """Three quarters of the cores that this process may use, at most 12."""
    cores = len(os.sched_getaffinity(0))
    return min(MAX_DEFAULT_THREADS, max(1, cores - cores // 4))


def _resolve_device(backend: str, device: torch.device | str | int | None) -> torch.device:
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a str, got {shown(backend)} of type {type(backend).__name__}")
    if backend not in ("auto", "cuda", "host"):
        raise ValueError(f"backend is {shown(backend)}, it must be one of 'auto', 'cuda', 'host'")
    named = None if device is None else _parse_device(device)
    if backend == "auto":
        backend = "cuda" if torch.cuda.is_available() else "host"
    if backend == "host":
        if named is not None and named.type != "cpu":
            raise ValueError(f"device is {named}, a ring of the host backend copies to the CPU")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise CudaError("backend is 'cuda' but torch finds no CUDA device")
    if named is not None and named.type != "cuda":
        raise ValueError(f"device is {named}, a ring of the CUDA backend copies to a CUDA device")
    if named is None or named.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    count = torch.cuda.device_count()
    if named.index >= count:
        raise ValueError(f"device is {named}, torch finds {count} CUDA devices")
    return named


def _parse_device(device: Any) -> torch.device:
    if isinstance(device, bool) or not isinstance(device, torch.device | str | int):
        kind = type(device).__name__
        raise TypeError(f"device must be a device or an index, got {shown(device)} of type {kind}")
    if isinstance(device, int):
        return torch.device("cuda", to_int("device", device, 0, MAX_DEVICE_INDEX))
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {shown(device)}, torch knows no device of this name") from None


def _close(ring: _native.Ring, device: torch.device) -> None:
    ring.close()
    if device.type == "cuda":
        give_stream_back(ring.stream)
