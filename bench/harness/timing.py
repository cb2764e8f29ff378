"""Measures a call: its time on the device (by events, with a cold L2), its time on the host, its memory."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from vitcache.bench.harness.allocations import peak_on_cpu

_T = TypeVar("_T")

# Larger than the L2 cache of any GPU so far (an H200 has 60 MB, a B200 126 MB).
FLUSH_BYTES = 256 << 20
# Device clock cycles, about 1 ms at 2 GHz: longer than the host needs to issue any measured call.
HIDE_CYCLES = 2_000_000


def _do_nothing(*_: object) -> None:
    pass


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


def gb_per_s(times_us: Sample, num_bytes: int) -> Sample:
    """Convert times to GB/s. The 80th percentile of the time gives the 20th percentile of the rate."""
    times = times_us.value, times_us.p80, times_us.p20
    return Sample(*(num_bytes / time_us / 1e3 for time_us in times))


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
    """Measures calls on one device. On the CPU the device's time is the host's time.

    `rounds_us` calls `on_round` before each round, with the rounds that are done and their number.
    """

    def __init__(
        self, device: torch.device, repeats: int, *, on_round: Callable[[int, int], object] = _do_nothing
    ) -> None:
        self.device = device
        self.repeats = repeats
        self.on_round = on_round
        self._flushed = (
            torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device) if device.type == "cuda" else None
        )

    def with_repeats(self, repeats: int) -> Timer:
        """Return a timer that repeats each measurement `repeats` times, and is otherwise like this one."""
        return Timer(self.device, repeats, on_round=self.on_round)

    def flush(self) -> None:
        """Queue a write that evicts everything else from the L2 cache of the GPU."""
        if self._flushed is not None:
            self._flushed.zero_()

    def device_us(self, function: Callable[[], object], before: Callable[[], object] = _do_nothing) -> Sample:
        """Return the microseconds from the call's first to its last kernel.

        A kernel keeps the device busy while the host issues the call. So the result contains no host time,
        unless the call synchronizes. `before` runs before each call and is not timed.
        """
        if self.device.type == "cpu":
            return self.host_us(function, before)
        for _ in range(3):
            before()
            function()
        values = []
        for _ in range(self.repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before()
            self.flush()
            torch.cuda._sleep(HIDE_CYCLES)
            begin.record()
            function()
            end.record()
            end.synchronize()
            values.append(begin.elapsed_time(end) * 1e3)
        return Sample.of(values)

    def host_us(self, function: Callable[[], object], before: Callable[[], object] = _do_nothing) -> Sample:
        """Return the microseconds until a call returns. On CUDA the device is idle before each call.

        `before` runs before each call and is not timed.
        """
        values = []
        for _ in range(self.repeats + 3):
            before()
            self.synchronize()
            begin = time.perf_counter()
            function()
            values.append((time.perf_counter() - begin) * 1e6)
        self.synchronize()
        return Sample.of(values[3:])

    def rounds_us(
        self,
        functions: dict[str, Callable[[], object]],
        *,
        calls: int = 1,
        before: Mapping[str, Callable[[], object]] | None = None,
    ) -> dict[str, Sample]:
        """Return the microseconds of each call until the device is idle.

        Each round calls every function `calls` times and records the median. So a slow phase of the machine
        slows all functions equally. The function's entry in `before` runs before each call and is not timed.
        """
        values: dict[str, list[float]] = {name: [] for name in functions}
        for done in range(self.repeats + 2):
            self.on_round(done, self.repeats + 2)
            for name, function in functions.items():
                times = []
                for _ in range(calls):
                    if before is not None:
                        before[name]()
                    self.synchronize()
                    begin = time.perf_counter()
                    function()
                    self.synchronize()
                    times.append((time.perf_counter() - begin) * 1e6)
                values[name].append(statistics.median(times))
        return {name: Sample.of(times[2:]) for name, times in values.items()}

    def peak_bytes(self, function: Callable[[], object]) -> int:
        """Return the largest number of bytes that a call adds to torch's allocated device memory.

        The call's result is included.
        """
        if self.device.type != "cuda":
            return peak_on_cpu(function)
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


def us_per_call(call: Callable[[_T], object], arguments: Sequence[_T], threads: int) -> float:
    """Return the wall-clock microseconds of all calls, on `threads` threads, divided by their number.

    Thread n calls `call` with ``arguments[n::threads]``. If a call raises, raises its exception.
    """
    start = threading.Barrier(threads + 1)
    errors: list[BaseException] = []

    def work(part: Sequence[_T]) -> None:
        start.wait()
        try:
            for argument in part:
                call(argument)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(arguments[n::threads],)) for n in range(threads)]
    for worker in workers:
        worker.start()
    begin = time.perf_counter()
    start.wait()
    for worker in workers:
        worker.join()
    elapsed = time.perf_counter() - begin
    if errors:
        raise errors[0]
    return elapsed / len(arguments) * 1e6
