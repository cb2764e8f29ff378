"""Measures a call: its time on the device (by events, with a cold L2), its time on the host, its memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Larger than the L2 cache of any GPU so far (an H200 has 60 MB, a B200 126 MB).
FLUSH_BYTES = 256 << 20
# Device clock cycles, about 1 ms at 2 GHz: longer than the host needs to issue any measured call.
HIDE_CYCLES = 2_000_000


@dataclass(frozen=True)
class Sample:
    """Median, 20th and 80th percentile of repeated measurements, in the unit of the measurement."""

    value: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Sample:
        """Summarize one or more measurements."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(statistics.median(values), fifths[0], fifths[3])


class TimedBlock:
    """Times a ``with`` block; `ms` returns the time later.

    On CUDA the block's time is measured on the current stream, by an event at each end. On the CPU it is the
    host's time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[float | torch.cuda.Event] = []

    def __enter__(self) -> TimedBlock:
        self._record_end()
        return self

    def __exit__(self, *_: object) -> None:
        self._record_end()

    def ms(self) -> float:
        """Return the milliseconds of the block. On CUDA the host waits for the event at its end."""
        begin, end = self._ends
        if self._device.type == "cpu":
            return (end - begin) * 1e3
        end.synchronize()
        return begin.elapsed_time(end)

    def _record_end(self) -> None:
        if self._device.type == "cpu":
            self._ends.append(time.perf_counter())
        else:
            self._ends.append(torch.cuda.Event(enable_timing=True))
            self._ends[-1].record()


class Timer:
    """Measures calls on one device. On the CPU the device's time is the host's time."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self._flush = (
            torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
        )

    def device_us(self, function: Callable[[], object]) -> Sample:
        """Return the microseconds from the call's first to its last kernel.

        A kernel keeps the device busy while the host issues the call. So the result contains no host time,
        unless the call synchronizes.
        """
        if self._flush is None:
            return self.host_us(function)
        for _ in range(3):
            function()
        values = []
        for _ in range(self.repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            torch.cuda._sleep(HIDE_CYCLES)
            begin.record()
            function()
            end.record()
            end.synchronize()
            values.append(begin.elapsed_time(end) * 1e3)
        return Sample.of(values)

    def host_us(self, function: Callable[[], object]) -> Sample:
        """Return the microseconds until a call returns. On CUDA the device is idle before each call."""
        values = []
        for _ in range(self.repeats + 3):
            self.synchronize()
            begin = time.perf_counter()
            function()
            values.append((time.perf_counter() - begin) * 1e6)
        self.synchronize()
        return Sample.of(values[3:])

    def rounds_us(self, functions: dict[str, Callable[[], object]]) -> dict[str, Sample]:
        """Return the microseconds of each call until the device is idle.

        Each round calls every function once. So a slow phase of the machine slows all functions equally.
        """
        values: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(self.repeats + 2):
            for name, function in functions.items():
                self.synchronize()
                begin = time.perf_counter()
                function()
                self.synchronize()
                values[name].append((time.perf_counter() - begin) * 1e6)
        return {name: Sample.of(times[2:]) for name, times in values.items()}

    def peak_bytes(self, function: Callable[[], object]) -> int | None:
        """Return the largest number of bytes that a call adds to torch's allocated device memory.

        The call's result is included. None on the CPU.
        """
        if self.device.type != "cuda":
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        self.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before

    def synchronize(self) -> None:
        """Let the host wait for all work of the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
