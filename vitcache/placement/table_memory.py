"""Memory for the tables that kernels read where the host wrote them: pinned on CUDA, never waited for,
reused by lap.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vitcache.device.streams import Event

BLOCK_VALUES = 1 << 17  # 1 MiB of int64: the row tables of 65,536 rows


class Completion(Protocol):
    """Something that tells whether the work before it is done, such as a recorded `Event`."""

    def query(self) -> bool:
        """Whether it is."""


class _Block:
    __slots__ = ("fence", "memory", "used")

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.used = 0
        self.fence: Completion | None = None


class TableMemory:
    """Blocks of int64 memory for the tables of calls on one stream, made by one thread.

    A table lies in the current block until the device has read it. When a block is full a fence is left
    behind the launches that read it, one per lap; the oldest block whose fence has passed comes next, and a
    new one is allocated where none has, so that the host never waits. There are as many blocks as the stream
    is ever behind.

    Parameters
    ----------
    allocate
        Makes a block of so many int64 values.
    fence
        Leaves a fence on the stream.
    """

    def __init__(self, allocate: Callable[[int], Tensor], fence: Callable[[], Completion]) -> None:
        self._allocate = allocate
        self._fence = fence
        self._current: _Block | None = None
        self._full: deque[_Block] = deque()
        self._kept_alive: deque[tuple[Completion, object]] = deque()

    @property
    def num_blocks(self) -> int:
        """Blocks that were ever needed at once."""
        return len(self._full) + (self._current is not None)

    def reserve(self, values: int) -> Tensor:
        """Return so many int64 values, 16-byte aligned, to be written now and read by a launch on the stream.

        They are reused some time after the next call, but not before all launches made until then are done.
        """
        block = self._current
        if block is None or block.used + values > len(block.memory):
            block = self._current = self._next_block(values)
        table = block.memory[block.used : block.used + values]
        block.used += values + values % 2
        return table

    def keep_alive(self, value: object) -> None:
        """Keep `value` alive until the launches so far have read what it owns, or longer."""
        while self._kept_alive and self._kept_alive[0][0].query():
            self._kept_alive.popleft()
        self._kept_alive.append((self._fence(), value))

    def _next_block(self, values: int) -> _Block:
        if self._current is not None:
            self._current.fence = self._fence()
            self._full.append(self._current)
        oldest = self._full[0] if self._full else None
        if oldest is None or oldest.fence is None or not oldest.fence.query():
            return _Block(self._allocate(max(values, BLOCK_VALUES)))
        self._full.popleft()
        if len(oldest.memory) < values:
            return _Block(self._allocate(values))
        oldest.used, oldest.fence = 0, None
        return oldest


# By thread, device and stream. It outlives its thread: the device may still read what it holds. A later
# thread that gets the same identity goes on with it, in the same order.
_memories: dict[tuple[int, torch.device, int], TableMemory] = {}


def table_memory_of(device: torch.device) -> TableMemory:
    """The calling thread's memory for the current stream of a device.

    Threads that share a stream have one each: one thread's fence says nothing of what another is about to
    launch.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (threading.get_ident(), device, stream)
    memory = _memories.get(key)
    if memory is None:
        memory = _memories[key] = _make_memory(device)
    return memory


def _make_memory(device: torch.device) -> TableMemory:
    on_cuda = device.type == "cuda"

    def allocate(values: int) -> Tensor:
        return torch.empty(values, dtype=torch.int64, device="cpu", pin_memory=on_cuda)

    def fence() -> Completion:
        if not on_cuda:
            return _Done()
        event = Event()
        event.record(torch.cuda.current_stream(device))
        return event

    return TableMemory(allocate, fence)


class _Done:
    def query(self) -> bool:
        return True
