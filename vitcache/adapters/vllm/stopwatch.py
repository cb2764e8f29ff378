"""Times of work on a stream, read without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

Mark = Any  # a torch.cuda.Event, or a time in seconds on the CPU


class Stopwatch:
    """Measures the time between two marks of a stream, once both are complete.

    Parameters
    ----------
    device
        A CUDA device: a mark is an event on the current stream. The CPU: a mark is the time of the call.

    Notes
    -----
    One thread may use it. No call waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._open: deque[tuple[Mark, Mark, Callable[[float], None]]] = deque()

    def mark(self) -> Mark:
        """Return a mark behind the work that is queued on the current stream."""
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def measure(self, start: Mark, end: Mark, report: Callable[[float], None]) -> None:
        """Call `report` with the milliseconds from `start` to `end`, in a later call of `collect`."""
        self._open.append((start, end, report))

    def collect(self) -> None:
        """Report the times whose marks are complete, in the order of `measure`."""
        while self._open:
            start, end, report = self._open[0]
            if self._on_cuda:
                if not (start.query() and end.query()):
                    return
                elapsed = start.elapsed_time(end)
            else:
                elapsed = (end - start) * 1000
            self._open.popleft()
            report(elapsed)
