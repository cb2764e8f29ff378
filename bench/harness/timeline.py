"""The timeline of one step: the profiler's trace, and a picture with three lanes.

On a GPU the lanes show copies and kernels on the device. On the CPU they show ranges of the calling thread:
the calls that queue copies, the tower, and the rest of the step after the tower.
``python -m vitcache.bench.plot FILE-timeline.json.gz`` draws the picture from a trace.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from vitcache import PinnedRing, Ticket
from vitcache.bench.harness.figures import frame, open_figure, styles
from vitcache.terminal.result_file import replace_file, save_figure

SUFFIX = "-timeline.json.gz"
STEP, TOWER, COPY = "step", "ViT", "copy"
# Names of the kernels that place rows begin with these.
PLACEMENT_KERNELS = ("embed_rows_kernel", "scatter_rows_kernel")

Lane = list[tuple[float, float]]
"""Bars of one lane: the start and the length of each, in microseconds."""


class TracedRing(PinnedRing):
    """A ring whose `copy_to` calls are ranges of the profile."""

    def copy_to(self, *args: Any, **kwargs: Any) -> Ticket:
        """See `PinnedRing`."""
        with record_function(COPY):
            return super().copy_to(*args, **kwargs)


def record_step(step: Callable[[], object], results: Path, device: torch.device) -> Path:
    """Profile one step and return the path of the trace, a file beside the bench's `results`.

    Run the step once before, so that the profile contains no compilation.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler, record_function(STEP):
        step()
        if on_gpu:
            torch.cuda.synchronize()
    trace = results.with_name(results.stem + SUFFIX)
    with TemporaryDirectory(prefix="vitcache-") as folder:
        exported = Path(folder) / trace.name
        profiler.export_chrome_trace(str(exported))
        replace_file(trace, exported.read_bytes())
    return trace


def read_lanes(trace: Path) -> dict[str, Lane]:
    """Return the lanes of a trace by name, in microseconds from the beginning of the step."""
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
            "placement": lane("kernel", *PLACEMENT_KERNELS),
        }
    tower = lane("user_annotation", TOWER)
    tower_end = max((first + took for first, took in tower), default=0.0)
    return {
        "copies (queued)": lane("user_annotation", COPY),
        "ViT": tower,
        "placement": [(tower_end, length - tower_end)],
    }


def draw(trace: Path) -> Path:
    """Draw the lanes of a trace; return the path of the PNG file, which is beside the trace."""
    lanes = read_lanes(trace)
    figure, [[axes]] = open_figure(height=1.9)
    looks = dict(zip(lanes, styles(("vitcache", "stock", "placed")).values(), strict=True))
    for row, (name, lane) in enumerate(lanes.items()):
        bars = [(first / 1e3, took / 1e3) for first, took in lane]
        axes.broken_barh(bars, (row - 0.4, 0.8), **looks[name].bar())
    axes.set(yticks=range(len(lanes)), yticklabels=lanes, ylabel="work")
    axes.set(xlabel="milliseconds from the beginning of the step", xlim=(0, None))
    axes.invert_yaxis()
    end = max(first + took for lane in lanes.values() for first, took in lane)
    tower = sum(took for _, took in lanes[TOWER])
    title = f"The vision tower runs for {tower / end:.0%} of a step with new images ({end / 1e3:.3g} ms)"
    name = trace.name.removesuffix(SUFFIX)
    frame(figure, title, "One step, recorded by the profiler, which slows it down.", f"vitcache bench {name}")
    target = trace.with_name(trace.name.removesuffix(".json.gz") + ".png")
    save_figure(figure, target)
    return target
