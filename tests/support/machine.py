"""A CUDA device, or the CPU in its place: a dry run executes the body of every GPU test on the CPU."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch

T = TypeVar("T")

DRY = os.environ.get("VITCACHE_GPU_DRY", "0") not in ("", "0")
CUDA = torch.cuda.is_available() and not DRY

# For a clock of 2 GHz, near the highest of an H100 or H200. With a faster clock `slow` takes less time.
CYCLES_PER_MS = 2_000_000


class CpuEvent:
    """A `torch.cuda.Event` of an idle device: it is always complete."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self._seconds = time.perf_counter()

    def elapsed_time(self, end: "CpuEvent") -> float:
        return (end._seconds - self._seconds) * 1e3

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def wait(self, stream: Any = None) -> None:
        pass


class CpuStream:
    """A `torch.cuda.Stream` whose work is always complete."""

    def record_event(self, event: CpuEvent | None = None) -> CpuEvent:
        event = event or CpuEvent()
        event.record()
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass


@dataclass(frozen=True)
class Machine:
    """The device of the GPU tests; if `dry`, the CPU in place of a CUDA device."""

    device: str
    dry: bool

    def size(self, full: T, smoke: T) -> T:
        """`full` on a GPU, `smoke` in a dry run: numbers of items, rows, tokens, bytes or repeats.

        Widths and dtypes are equal in both, so that a dry run launches the variants of a GPU.
        """
        return smoke if self.dry else full

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()

    def event(self) -> Any:
        return CpuEvent() if self.dry else torch.cuda.Event(enable_timing=True)

    @contextmanager
    def stream(self) -> Iterator[Any]:
        """Make a new stream current. Its work is not ordered with other streams before `wait_stream`."""
        if self.dry:
            yield CpuStream()
            return
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            yield side

    def current_stream(self) -> Any:
        return CpuStream() if self.dry else torch.cuda.current_stream()

    def slow(self, milliseconds: float) -> None:
        """Keep the current stream busy for `milliseconds` at a clock of 2 GHz. The host does not wait."""
        if not self.dry:
            torch.cuda._sleep(int(milliseconds * CYCLES_PER_MS))

    def is_behind(self, stream: Any) -> bool:
        """Whether `stream` has incomplete work. True in a dry run."""
        return self.dry or not stream.query()

    @contextmanager
    def no_host_sync(self) -> Iterator[None]:
        """Make each call of torch that waits for the device raise, such as a copy of pageable memory."""
        if self.dry:
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @contextmanager
    def host_syncs(self) -> Iterator[list[str]]:
        """A list that has, after the block, an entry for each call of torch that waited for the device."""
        found: list[str] = []
        if self.dry:
            yield found
            return
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        messages = [str(warning.message) for warning in warned]
        found += [message for message in messages if message.startswith("called a synchronizing")]

    def graph(self, body: Callable[[], Any]) -> Callable[[], Any]:
        """Run `body` once, capture it, and return its replay; in a dry run, return `body`."""
        if self.dry:
            body()
            return body
        if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING", "0") != "0":
            pytest.skip("a capture needs torch's caching allocator, which the memory checker turns off")
        with self.stream() as side:
            side.wait_stream(torch.cuda.default_stream())
            body()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        return graph.replay
