"""Memory for the tables that the host writes and kernels read in place. It is pinned on CUDA.

The memory is reused block by block. The host never waits for a block. It is released with its thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vitcache.device.capture import relaxed_capture_mode
from vitcache.device.streams import PER_THREAD_STREAM, Event

# int64 values. The first block is 64 KiB: the row tables of 4,096 rows. Each full block is followed by one of
# twice the size, up to 1 MiB. A thread with many rows records few fences, one with few rows pins few bytes.
FIRST_BLOCK_VALUES = 1 << 13
BLOCK_VALUES = 1 << 17


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
    complete and it is large enough. Otherwise a new block is allocated, so that the host never waits. The
    number of blocks grows while the host queues launches faster than the device runs them.

    Parameters
    ----------
    allocate
        Returns a block, given its number of int64 values.
    record_fence
        Records a fence on the stream and returns it.
    release_others
        Called when a block is full: releases the memory of threads that have ended.
    can_record
        Whether `record_fence` may be called at the moment by a thread other than the owner.
    """

    def __init__(
        self,
        allocate: Callable[[int], Tensor],
        record_fence: Callable[[], RecordedFence],
        release_others: Callable[[], object] | None = None,
        can_record: Callable[[], bool] | None = None,
    ) -> None:
        self._allocate = allocate
        self._record_fence = record_fence
        self._release_others = release_others
        self._can_record = can_record
        self._num_values = FIRST_BLOCK_VALUES  # of the next block
        self._last_fence: RecordedFence | None = None
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
        # A current block has a fence if an interrupt ended `_next_block`: no launch may follow the fence.
        if block is None or block.readers_fence is not None or block.num_used + num_values > block.size:
            block = self._current = self._next_block(num_values)
        table = block.memory.narrow(0, block.num_used, num_values)  # faster than a slice
        block.num_used += num_values + num_values % 2
        return table

    def keep_alive(self, value: object) -> None:
        """Keep `value` alive at least until the launches queued so far are complete."""
        self.drop_read()
        self._kept_alive.append((self._record_fence(), value))

    def drop_read(self) -> None:
        """Drop the values that `keep_alive` keeps, up to the first one whose launches are not complete."""
        while self._kept_alive and self._kept_alive[0][0].query():
            self._kept_alive.popleft()

    def is_read(self) -> bool:
        """Whether all launches queued so far are known to be complete. The owning thread must have ended.

        The first call that may record a fence does so.
        """
        if self._last_fence is None:
            if self._can_record is not None and not self._can_record():
                return False
            self._last_fence = self._record_fence()
        return self._last_fence.query()

    def adopt(self) -> None:
        """Let the calling thread use the memory. Its launches run on the same stream as those before."""
        self._last_fence = None

    def _next_block(self, num_values: int) -> _Block:
        full = self._current
        if full is not None:
            # The block stays the current one until there is another: an interrupt at any line leaves it in
            # `_current`, in `_full`, or in both.
            if full.readers_fence is None:
                full.readers_fence = self._record_fence()
            if not self._full or self._full[-1] is not full:
                self._full.append(full)
            self._num_values = min(2 * self._num_values, BLOCK_VALUES)
            if self._release_others is not None:
                self._release_others()
        num_values = max(num_values, self._num_values)
        oldest = self._full[0] if self._full else None
        if oldest is None or oldest.readers_fence is None or not oldest.readers_fence.query():
            return _Block(self._allocate(num_values))
        # Another object of the same memory: an interrupt leaves the block out of use, or in use once.
        self._full.popleft()
        return _Block(oldest.memory if oldest.size >= num_values else self._allocate(num_values))


Place = tuple[torch.device, int]  # a device, and the handle of a stream

# The memories of threads that have ended, which the device may still read. Threads share the deque without a
# lock: `popleft` gives each memory to one thread, and a finalizer, which only appends, can run at any moment.
_retired: deque[tuple[Place, TableMemory]] = deque()


# Keeps each memory that the device may still read. An interrupt may lose a memory that is in no other place.
_unread: set[TableMemory] = set()


class _ThreadMemories(dict[Place, TableMemory]):
    """The memories of one thread. They are retired when the thread ends.

    The finalizer makes no CUDA call: it may run at exit, in a forked child, and during a capture.
    """

    def __del__(
        self, retire: Callable[[Iterable[tuple[Place, TableMemory]]], None] = _retired.extend
    ) -> None:
        retire(self.items())


class _Thread(threading.local):
    def __init__(self) -> None:
        self.memories = _ThreadMemories()


_thread = _Thread()


def table_memory_of(device: torch.device) -> TableMemory:
    """The calling thread's table memory for the current stream of `device`.

    Two threads that use one stream do not share a memory: a fence that one thread records does not cover a
    launch that the other thread has yet to queue. When a thread ends, the next new thread that uses the same
    stream takes its memory. Otherwise a later placement on the device frees it, when a fence behind the
    launches is complete. Memory of a stream that torch did not make is not freed, as the stream may not
    exist any more. Memory of cudaStreamPerThread is neither taken nor freed.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    memories, place = _thread.memories, (device, stream)
    memory = memories.get(place)
    if memory is None:
        memory = memories[place] = _release_retired(device, place) or _make_memory(device)
    return memory


def _release_retired(device: torch.device, wanted: Place | None = None) -> TableMemory | None:
    """Free the memories of ended threads that `device` has read; return one of the place `wanted`, if any.

    Memories of other devices are not touched: a forked child can use the CPU alone.
    """
    for _ in range(len(_retired)):
        try:
            place, memory = _retired.popleft()
        except IndexError:  # another thread has taken the last one
            break
        if place == wanted and place[1] != PER_THREAD_STREAM:
            memory.adopt()
            return memory
        if place[0] != device or not memory.is_read():
            _retired.append((place, memory))
        else:
            _unread.discard(memory)
    return None


def _can_record(stream: torch.cuda.Stream) -> bool:
    """Whether a fence may be recorded on `stream` by a thread that does not use it.

    A stream that torch did not make may not exist any more; torch keeps its own. A fence on a captured stream
    would become a part of the graph.
    """
    if stream.stream_id == stream.cuda_stream != 0:  # torch numbers its own streams
        return False
    with torch.cuda.stream(stream):
        return not torch.cuda.is_current_stream_capturing()


def _make_memory(device: torch.device) -> TableMemory:
    on_cuda = device.type == "cuda"
    stream = torch.cuda.current_stream(device) if on_cuda else None

    def allocate(num_values: int) -> Tensor:
        with relaxed_capture_mode() if on_cuda else nullcontext():
            return torch.empty(num_values, dtype=torch.int64, device="cpu", pin_memory=on_cuda)

    def record_fence() -> RecordedFence:
        if stream is None:
            return _CpuFence()
        event = Event()
        event.record(stream)
        return event

    memory = TableMemory(
        allocate,
        record_fence,
        partial(_release_retired, device),
        None if stream is None else partial(_can_record, stream),
    )
    _unread.add(memory)
    return memory


class _CpuFence:
    """A fence on the CPU, where all earlier work is complete already."""

    def query(self) -> bool:
        return True
