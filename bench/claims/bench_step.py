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
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vitcache.bench.claims.cold_steps import ColdCase, run_cold
from vitcache.bench.claims.host_steps import CONTENDERS, JUDGED, REFERENCE, HostCase, ThreadsCase, run_host
from vitcache.bench.harness import figures
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

KINDS = {"hits": "all items hit", "misses": "all items miss", r"\d+ threads": "all hit, several threads"}
NOTE = (
    f"A dict: {REFERENCE}. The rows are tiny and nothing is encoded: the time is the host's own work. A "
    f"miss of vitcache also reserves pages, stores the rows and evicts. {figures.SPREAD}"
)


def run_case(case: HostCase | ColdCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    if isinstance(case, ColdCase):
        yield from run_cold(case, recorder, timer)
    else:
        yield from run_host(case, recorder, timer)


def draw(rows: figures.Rows) -> Figure:
    """Draw microseconds per step over the items: steps that hit, steps that miss, and steps on threads.

    Without such results, as on a GPU, draw the cold steps as multiples of the encode.
    """
    if not any(row["metric"] == "host_us" for row in rows):
        return draw_ratios(rows, JUDGED, "A step with images that are not in the cache.")
    figure, [panels] = figures.open_figure(columns=3, height=3.6)
    looks = figures.styles((JUDGED, *CONTENDERS))
    for axes, (kind, title) in zip(panels, KINDS.items(), strict=True):
        lines: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
        for row in rows:
            found = re.fullmatch(rf"(\d+) items, ({kind})", row["case"])
            if found:
                threads = found[2] if found[2].endswith("threads") else ""
                lines.setdefault((row["contender"], threads), []).append((int(found[1]), row))
        for (name, threads), points in lines.items():
            look = looks[name]
            if threads:  # the colour tells the contenders apart, the marker and the line the threads
                other = figures.STYLES[int(threads.split()[0]) // 2]
                look = replace(look, marker=other.marker, line=other.line)
            figures.curve(
                axes, points, look, f"{name}, {threads}".removesuffix(", ").replace("1 threads", "1 thread")
            )
        axes.set(
            title=title, xlabel="items of a step", ylabel="microseconds per step", xscale="log", yscale="log"
        )
        axes.grid(visible=False, which="minor")
        figures.plain_ticks(axes, sorted({x for points in lines.values() for x, _ in points}))
        figures.log_ticks(axes, "y")
        axes.tick_params(axis="x", rotation=45)
    return figures.finish(figure, rows, host_title(rows), NOTE)


def host_title(rows: figures.Rows) -> str:
    """Return the claim: from how many hits on vitcache is faster than a dict, and the cost of misses."""
    hits, misses = (
        {
            int(row["case"].split()[0]): row["ratio"]
            for row in rows
            if row["contender"] == JUDGED and row["case"].endswith(kind)
        }
        for kind in (", hits", ", misses")
    )
    first = next((n for n in sorted(hits) if all(hits[m] < 1 for m in hits if m >= n)), None)
    claim = f"a step of vitcache that hits takes {figures.span(hits.values())} times a dict's"
    if first is not None:
        faster = [ratio for n, ratio in hits.items() if n >= first]
        claim = f"with {first} items or more, a step that hits takes {figures.span(faster)} times a dict's"
    return f"Host time: {claim}; one that misses takes {figures.span(misses.values(), '{:.1f}')} times"
