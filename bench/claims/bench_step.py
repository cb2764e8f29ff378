"""Claims about one step: it costs the host little time, and cold images take the time of their encode.

A step is one call of `VisionPipeline.embed`. Without a GPU the bench measures the host's time, on one thread,
for one request whose keys are given: with 32 items or more that all hit, the step costs less than with a
plain dict. Rows are tiny, and the encoder returns slices of a tensor, so the time is the host's work: keys to
rows, and rows to `inputs_embeds`. Each case is measured with all items in the cache, and with no item in the
cache. The last cases let several threads call `embed` of one pipeline at once, each with its own request;
their time is that of all threads, divided by the number of all steps. `host_steps` contains these cases.

On a GPU the bench measures steps with cold images until the device is idle: eight images of 1920x1080 take
about the time of their encode, and a cache without hits costs almost nothing. `cold_steps` contains these
cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vitcache.bench.claims.cold_steps import ColdCase, run_cold
from vitcache.bench.claims.host_steps import JUDGED, HostCase, ThreadsCase, run_host
from vitcache.bench.harness.ratios import draw_ratios
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "step"
CLAIMS_CPU = True
CASES: dict[str, list[HostCase | ColdCase]] = {
    "full": [
        *(HostCase(items) for items in (1, 2, 8, 32, 128, 512, 2048)),
        *(ThreadsCase(items) for items in (1, 32, 512)),
        ColdCase("8x1920x1080", (1, 68, 120), images=8),
    ],
    "smoke": [
        HostCase(3),
        HostCase(5),
        ThreadsCase(3, (1, 2)),
        ColdCase("3xtiny", (1, 8, 8), images=3, size="tiny", max_rows=32),
    ],
}


def run_case(case: HostCase | ColdCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    if isinstance(case, ColdCase):
        yield from run_cold(case, recorder, timer)
    else:
        yield from run_host(case, recorder, timer)


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Draw microseconds per step over the items: steps that hit, steps that miss, and steps on threads.

    Without such results, as on a GPU, draw bars of the cold steps.
    """
    from matplotlib.figure import Figure

    if not any(row["metric"] == "host_us" for row in rows):
        return draw_ratios(rows)
    figure = Figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, kind in zip(panels, ("hits", "misses", r"\d+ threads"), strict=True):
        lines: dict[str, dict[int, float]] = {}
        for row in rows:
            found = re.fullmatch(rf"(\d+) items, ({kind})", row["case"])
            if found:
                suffix = f", {found[2]}" if found[2].endswith("threads") else ""
                lines.setdefault(row["contender"] + suffix, {})[int(found[1])] = row["value"]
        for name, line in lines.items():
            style = "-" if name.startswith(JUDGED) else "--"
            axes.plot(list(line), list(line.values()), style, marker="o", label=name)
        title = {"hits": "all items hit", "misses": "all items miss"}.get(kind, "all items hit, threads")
        axes.set(title=title, xlabel="items", ylabel="microseconds per step", xscale="log", yscale="log")
        axes.legend(fontsize=8)
    figure.suptitle(f"step, {rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['commit']}")
    return figure
