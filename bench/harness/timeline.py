"""The timeline of one step: the profiler's own trace, and a picture of three lanes of it.

On a GPU the lanes are what the device did. On the CPU they are ranges of the calling thread: copies being
queued, the tower, and what is left to do when the tower has returned.
``python -m vitcache.bench.plot FILE-timeline.json.gz`` draws the picture anew.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from vitcache import PinnedRing, Ticket

SUFFIX = "-timeline.json.gz"
STEP, TOWER, COPY = "step", "ViT", "copy"
# What the kernels that place rows have in their names.
PLACING = ("embed_rows_kernel", "scatter_rows_kernel")

Lane = list[tuple[float, float]]
"""Begin and length, in microseconds, of what happened there."""


class TracedRing(PinnedRing):
    """A ring whose calls are ranges of the profile."""

    def copy_to(self, *args: Any, **kwargs: Any) -> Ticket:
        """See `PinnedRing`."""
        with record_function(COPY):
            return super().copy_to(*args, **kwargs)


def record_step(step: Callable[[], object], results: Path, device: torch.device) -> Path:
    """Profile a step that has run before; return the trace, which is written beside its bench's `results`."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler, record_function(STEP):
        step()
        if on_gpu:
            torch.cuda.synchronize()
    trace = results.with_name(results.stem + SUFFIX)
    profiler.export_chrome_trace(str(trace))
    return trace


def read_lanes(trace: Path) -> dict[str, Lane]:
    """Return the lanes of a trace, all in microseconds from the beginning of its step."""
    with gzip.open(trace, "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]

    def lane(category: str, *names: str) -> Lane:
        chosen = [
            event for event in events if event.get("cat") == category and event["name"].startswith(names)
        ]
        return [(event["ts"] - begin, event["dur"]) for event in chosen]

    begin = 0.0
    [(begin, length)] = lane("user_annotation", STEP)
    if any(event.get("cat") == "kernel" for event in events):
        return {
            "copies": lane("gpu_memcpy", "Memcpy HtoD"),
            "ViT": lane("gpu_user_annotation", TOWER),
            "placement": lane("kernel", *PLACING),
        }
    tower = lane("user_annotation", TOWER)
    rest = max((first + took for first, took in tower), default=0.0)
    return {
        "copies (queued)": lane("user_annotation", COPY),
        "ViT": tower,
        "placement": [(rest, length - rest)],
    }


def draw(trace: Path) -> Path:
    """Write the picture of a trace beside it."""
    from matplotlib.figure import Figure

    lanes = read_lanes(trace)
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for row, (lane, color) in enumerate(
        zip(lanes.values(), ("tab:orange", "tab:blue", "tab:green"), strict=True)
    ):
        bars = [(first / 1e3, took / 1e3) for first, took in lane]
        axes.broken_barh(bars, (row - 0.4, 0.8), color=color)
    axes.set(yticks=range(len(lanes)), yticklabels=lanes, xlabel="ms from the beginning of the step")
    axes.invert_yaxis()
    axes.set_title(trace.name.removesuffix(SUFFIX))
    target = trace.with_name(trace.name.removesuffix(".json.gz") + ".png")
    figure.savefig(target, dpi=120)
    return target
