"""An array in pieces: views of bounded size in C order, and those of a CUDA tensor's bytes on the host."""

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
"""(target, source) -> a function that waits until the target holds the source."""

# Two of these are page-locked at a time. A copy over PCIe takes a tenth of the time to hash it.
_BUFFER_BYTES = 8 << 20


def pieces(array: Array, most_bytes: int) -> Iterator[Array]:
    """Yield views of `array` that are it in C order, none larger than `most_bytes` or else one element."""
    if array.nbytes == 0:
        return
    if array.nbytes <= most_bytes or array.ndim == 0:
        yield array
        return
    step = most_bytes * len(array) // array.nbytes
    if step == 0 and array.ndim > 1:
        for index in range(len(array)):
            yield from pieces(array[index], most_bytes)
    else:
        step = max(step, 1)
        for first in range(0, len(array), step):
            yield array[first : first + step]


def read_back(
    tensor: Tensor, start_copy: StartCopy | None = None, buffer_bytes: int = _BUFFER_BYTES
) -> Iterator[np.ndarray]:
    """Yield the bytes of `tensor` in C order, on the host, one piece while the next is on its way.

    A block is valid until the next one is asked for.

    Parameters
    ----------
    tensor
        On a CUDA device, or on the CPU if `start_copy` is given; of any strides and a dtype that NumPy has.
    start_copy
        None: `CudaCopies` of the tensor's device.
    buffer_bytes
        Size of each of the two buffers, and so of the largest piece.
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
            target = block.view(piece.dtype).view(piece.shape)
            started.append((block, start_copy(target, piece)))
            if len(started) == 2:
                yield _finish(started)
        while started:
            yield _finish(started)
    finally:
        # Given up half-way: no copy may be left that still reads the tensor.
        while started:
            _finish(started)


def _finish(started: deque[tuple[Tensor, Callable[[], None]]]) -> np.ndarray:
    block, wait = started.popleft()
    wait()
    return block.numpy()


class CudaCopies:
    """Copies from a CUDA device to page-locked memory, on a side stream behind the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def __call__(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        """Queue one copy; what it needs to gather a strided source is allocated on the side stream."""
        with torch.cuda.stream(self._stream):
            target.copy_(source.resolve_conj().resolve_neg(), non_blocking=True)
            done = Event()
            done.record(self._stream)
        return done.synchronize
