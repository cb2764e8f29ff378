"""The peak of the memory that torch allocates on the CPU during a call."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_on_cpu(function: Callable[[], object]) -> int:
    """Return the largest number of bytes that a call adds to torch's allocated memory on the CPU.

    The call's result is included. Torch's profiler records each allocation and each release, also those
    inside of an operation; `profiler.events()` has only their sum per operation.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    del result
    recorded: Any = profiler.profiler
    changes = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    peak: int = max(accumulate((event.nbytes() for event in changes), initial=0))
    return peak
