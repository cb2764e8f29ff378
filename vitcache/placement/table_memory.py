"""Memory for the tables that the host writes and kernels read in place. It is pinned on CUDA.

The memory is reused block by block. The host never waits for a block.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from vitcache.device.capture import relaxed_capture_mode
from vitcache.device.streams import Event

BLOCK_VALUES = 1 << 17  # 1 MiB of int64: the row tables of 65,536 rows


class RecordedFence(Protocol):
    """A fence recorded on a stream, such as a recorded `Event`."""

    def query(self) -> bool:
        """Whether all work before the fence is complete."""


class _Block:
    """`num_used` of the `size` values of `memory` are reserved.

    `readers_fence` is behind the launches that read them.
    """

    __slots__ = ("memory", "num_used", "readers_fence", "size")

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.size = memory.numel()
        self.num_used = 0
        self.readers_fence: RecordedFence | None = None  # None: this is the current block


class TableMemory:
    """Blocks of int64 memory for the tables of one thread's calls on one stream.

    A table is reserved in the current block. When the block is full, a fence is recorded behind the launches
    that read it: one fence per block, not per table. The next block is the oldest full block, if its fence is
    complete. Otherwise a new block is allocated, so that the host never waits. The number of blocks grows
    while the host queues launches faster than the device runs them.

    Parameters
    ----------
    allocate
        Returns a block, given its number of int64 values.
    record_fence
        Records a fence on the stream and returns it.
    """

    def __init__(self, allocate: Callable[[int], Tensor], record_fence: Callable[[], RecordedFence]) -> None:
        self._allocate = allocate
        self._record_fence = record_fence
        self._current: _Block | None = None
        self._full: deque[_Block] = deque()
        self._kept_alive: deque[tuple[RecordedFence, object]] = deque()

    @property
    def num_blocks(self) -> int:
        """Blocks that this memory owns."""
        return len(self._full) + (self._current is not None)

    def reserve(self, num_values: int) -> Tensor:
        """Return `num_values` int64 values, 16-byte aligned.

        The caller writes them and queues the launch that reads them before it calls `reserve` again. The
        memory is reused after its block became full and all launches queued until then are complete.
        """
        block = self._current
        if block is None or block.num_used + num_values > block.size:
            block = self._current = self._next_block(num_values)
        table = block.memory.narrow(0, block.num_used, num_values)  # faster than a slice
        block.num_used += num_values + num_values % 2
        return table

    def keep_alive(self, value: object) -> None:
        """Keep `value` alive at least until the launches queued so far are complete."""
        while self._kept_alive and self._kept_alive[0][0].query():
            self._kept_alive.popleft()
        self._kept_alive.append((self._record_fence(), value))

    def _next_block(self, num_values: int) -> _Block:
        if self._current is not None:
            self._current.readers_fence = self._record_fence()
            self._full.append(self._current)
        oldest = self._full[0] if self._full else None
        if oldest is None or oldest.readers_fence is None or not oldest.readers_fence.query():
            return _Block(self._allocate(max(num_values, BLOCK_VALUES)))
        self._full.popleft()
        if oldest.size < num_values:
            return _Block(self._allocate(num_values))
        oldest.num_used, oldest.readers_fence = 0, None
        return oldest


# By thread, device and stream. A memory outlives its thread, because the device may still read its tables. A
# later thread with the same identity and stream reuses it: its launches run after the earlier launches.
_memories: dict[tuple[int, torch.device, int], TableMemory] = {}


def table_memory_of(device: torch.device) -> TableMemory:
    """The calling thread's table memory for the current stream of `device`.

    Two threads that use one stream do not share a memory: a fence that one thread records does not cover a
    launch that the other thread has yet to queue.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (threading.get_ident(), device, stream)
    memory = _memories.get(key)
    if memory is None:
        memory = _memories[key] = _make_memory(device)
    return memory


def _make_memory(device: torch.device) -> TableMemory:
    on_cuda = device.type == "cuda"

    def allocate(num_values: int) -> Tensor:
        with relaxed_capture_mode() if on_cuda else nullcontext():
            return torch.empty(num_values, dtype=torch.int64, device="cpu", pin_memory=on_cuda)

    def record_fence() -> RecordedFence:
        if not on_cuda:
            return _CpuFence()
        event = Event()
        event.record(torch.cuda.current_stream(device))
        return event

    return TableMemory(allocate, record_fence)


class _CpuFence:
    """A fence on the CPU, where all earlier work is complete already."""

    def query(self) -> bool:
        return True
