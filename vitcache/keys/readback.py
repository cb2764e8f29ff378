"""Reads arrays in pieces of bounded size, in C order; copies the bytes of a CUDA tensor to the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vitcache.device.streams import Event

Array = TypeVar("Array", np.ndarray, Tensor)

StartCopy = Callable[[Tensor, Tensor], Callable[[], None]]
"""Starts a copy, given (destination, source); returns a function that blocks until the copy is complete."""

# Each read pins two buffers of this size. Copying a buffer over PCIe takes a tenth of the time of hashing it.
_BUFFER_BYTES = 8 << 20


def pieces(array: Array, max_bytes: int) -> Iterator[Array]:
    """Yield views that cover `array` in C order, each of at most `max_bytes` or of one element."""
    if array.nbytes == 0:
        return
    if array.nbytes <= max_bytes or array.ndim == 0:
        yield array
        return
    step = max_bytes * len(array) // array.nbytes
    if step == 0 and array.ndim > 1:
        for index in range(len(array)):
            yield from pieces(array[index], max_bytes)
    else:
        step = max(step, 1)
        for first in range(0, len(array), step):
            yield array[first : first + step]


def read_back(
    tensor: Tensor, start_copy: StartCopy | None = None, buffer_bytes: int = _BUFFER_BYTES
) -> Iterator[np.ndarray]:
    """Yield the bytes of `tensor` in C order, in blocks on the host.

    While the caller reads one block, the next is copied. A block is valid until the next one is requested.

    Parameters
    ----------
    tensor
        On a CUDA device, or on the CPU if `start_copy` is given. Any strides; a dtype that NumPy supports.
    start_copy
        Function that starts a copy. None: `CudaCopies` of the tensor's device.
    buffer_bytes
        Size of each of the two buffers, and the maximum size of a block.
    """
    on_cuda = tensor.is_cuda
    if start_copy is None:
        start_copy = CudaCopies(tensor.device)
    size = min(buffer_bytes, tensor.nbytes)
    buffers = [torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=on_cuda) for _ in range(2)]
    started: deque[tuple[Tensor, Callable[[], None]]] = deque()
    try:
        for number, piece in enumerate(pieces(tensor, size)):
            block = buffers[number % 2][: piece.nbytes]
            destination = block.view(piece.dtype).view(piece.shape)
            started.append((block, start_copy(destination, piece)))
            if len(started) == 2:
                yield _finish(started)
        while started:
            yield _finish(started)
    finally:
        # If the caller stops early, wait: a copy that is in flight still reads the tensor.
        while started:
            _finish(started)


def _finish(started: deque[tuple[Tensor, Callable[[], None]]]) -> np.ndarray:
    block, wait = started.popleft()
    wait()
    return block.numpy()


class CudaCopies:
    """Copies from a CUDA device to pinned memory, on a new stream behind the work of the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def __call__(self, destination: Tensor, source: Tensor) -> Callable[[], None]:
        """Queue one copy. torch gathers a `source` that is not contiguous into memory of this stream."""
        with torch.cuda.stream(self._stream):
            destination.copy_(source.resolve_conj().resolve_neg(), non_blocking=True)
            event = Event()
            event.record(self._stream)
        return event.synchronize
