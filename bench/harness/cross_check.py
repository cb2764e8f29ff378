"""Other ways to measure the device's time of a call, to check `Timer.device_us`.

`do_bench` of Triton (3.6 and 3.9) zeroes 256 MB before each call, as the timer does, and records an event
before and after each call. It keeps the device busy with nothing else: if the host needs longer to issue a
call than the device needs for the call and the zeroing, its time contains host time. So it checks only large
cases.

The profiler gives the time of the kernel alone, without the gaps between the kernel and the events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timeline import PLACEMENT_KERNELS
from vitcache.bench.harness.timing import Sample, Timer

# The largest allowed deviation: this share of the timer's time, plus microseconds for the gaps at the events.
SHARE, GAP_US = 0.03, 2.0

Measure = Callable[[Callable[[], object], Timer], Sample]


def do_bench_us(function: Callable[[], object], timer: Timer) -> Sample:
    """Measure a call by ``triton.testing.do_bench``, in microseconds."""
    import triton.testing

    quantiles_ms = triton.testing.do_bench(function, quantiles=[0.5, 0.2, 0.8])
    return Sample(*(1e3 * quantile for quantile in quantiles_ms))


def profiler_us(function: Callable[[], object], timer: Timer) -> Sample:
    """Measure the placement kernel of a call by torch's profiler, with a cold L2, in microseconds."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(timer.repeats):
            timer.flush()
            function()
        timer.synchronize()
    return Sample.of(kernel_us(profiler.events() or (), timer.repeats))


def kernel_us(events: Iterable[Any], calls: int) -> list[float]:
    """Return the microseconds of the placement kernels among the events of a profile.

    Raises
    ------
    RuntimeError
        If there is not one kernel for each of the `calls` calls.
    """
    times = [
        float(event.time_range.elapsed_us())
        for event in events
        if event.device_type.name == "CUDA" and event.name.startswith(PLACEMENT_KERNELS)
    ]
    if len(times) != calls:
        raise RuntimeError(f"expected {calls} placement kernels in the profile, got {len(times)}")
    return times


MEASURES: dict[str, Measure] = {"do_bench": do_bench_us, "profiler": profiler_us}


def add_cross_checks(
    case: str, contender: str, function: Callable[[], object], own: Sample, recorder: Recorder, timer: Timer
) -> None:
    """Measure a call in all other ways; add each time, and its deviation from the timer's time `own`."""
    for name, measure in MEASURES.items():
        other, label = measure(function, timer), f"{contender}, {name}"
        recorder.add(case, label, "device_us", "us", other, against=(contender, own.value))
        deviation = Sample.of([abs(other.value - own.value)])
        limit = SHARE * own.value + GAP_US
        recorder.add(case, label, "off_timer_us", "us", deviation, target=SHARE, limit=limit)
