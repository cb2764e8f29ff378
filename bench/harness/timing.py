"""Time of a call, on the device by events with a cold L2 and on the host, and the memory it needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Larger than the L2 cache of any GPU so far (an H200 has 60 MB, a B200 126 MB).
FLUSH_BYTES = 256 << 20
# Device clock cycles, about 1 ms at 2 GHz: longer than the host takes to issue any call measured here.
HIDE_CYCLES = 2_000_000


@dataclass(frozen=True)
class Sample:
    """Median, 20th and 80th percentile of repeated measurements, in the unit of the measurement."""

    value: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> Sample:
        """Summarise at least one measurement."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        fifths = statistics.quantiles(values, n=5, method="inclusive")
        return cls(statistics.median(values), fifths[0], fifths[3])


class Stretch:
    """The time between the two ends of a ``with`` block on the current stream, read later by `ms`.

    On the CPU it is the host's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ends: list[float | torch.cuda.Event] = []

    def __enter__(self) -> Stretch:
        self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        self._mark()

    def ms(self) -> float:
        """Milliseconds; on CUDA waits for the second end."""
        begin, end = self._ends
        if self._device.type == "cpu":
            return (end - begin) * 1e3
        end.synchronize()
        return begin.elapsed_time(end)

    def _mark(self) -> None:
        if self._device.type == "cpu":
            self._ends.append(time.perf_counter())
        else:
            self._ends.append(torch.cuda.Event(enable_timing=True))
            self._ends[-1].record()


class Timer:
    """Measures calls on one device. On the CPU the device's time is the host's."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self._flush = (
            torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
        )

    def device_us(self, function: Callable[[], object]) -> Sample:
        """Microseconds from the first to the last kernel of a call, its host work hidden where it can be.

        The device is kept busy while the call is issued, so that a call that does not synchronise shows no
        gaps.
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
        """Microseconds until a call returns. On CUDA the device is idle before each, so nothing queues up."""
        values = []
        for _ in range(self.repeats + 3):
            self.synchronize()
            begin = time.perf_counter()
            function()
            values.append((time.perf_counter() - begin) * 1e6)
        self.synchronize()
        return Sample.of(values[3:])

    def rounds_us(self, functions: dict[str, Callable[[], object]]) -> dict[str, Sample]:
        """Microseconds of each call, device included, measured in turns: what slows the machine down for a
        while slows all of them.
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
        """Largest device memory that a call adds to what is allocated before it, its result included; None
        on CPU.
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
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
