"""The figure of the bench `sglang`: the time of a step of SGLang, stock and with vitcache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcache.bench.harness import figures
from vitcache.bench.sglang.sides import STOCK, VITCACHE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAME = "same request"
METRICS = {"host_us": "time of the host", "device_us": "time on the device"}
NOTE = "Less is better. SGLang's general_mm_embed_routine; language model and tower compute nothing."


def draw(rows: figures.Rows) -> Figure:
    """Draw the steps of a known request and those of new requests; on a GPU, device and host."""
    looks = figures.styles((VITCACHE, STOCK))
    targets = {(row["case"], row["contender"]): row["target"] for row in rows if row["target"] is not None}
    parts = parts_of(rows)
    heights = [len({row["case"] for row in part}) for part in parts.values()]
    figure, panels = figures.open_figure(
        len(parts), 1, height=1.4 + 0.42 * sum(heights), height_ratios=heights
    )
    for [axes], (title, part) in zip(panels, parts.items(), strict=True):
        figures.compare(axes, part, looks, unit=" us", targets=targets)
        axes.set_xscale("log")
        figures.log_ticks(axes)
        axes.set(title=title, xlabel=f"{METRICS[part[0]['metric']]} (microseconds)", ylabel="step")
    return figures.finish(figure, rows, title_of(rows), f"{NOTE} {figures.SPREAD}")


def parts_of(rows: figures.Rows) -> dict[str, figures.Rows]:
    """Return the rows of each panel by its title."""
    if any(row["metric"] == "device_us" for row in rows):
        return {words: [row for row in rows if row["metric"] == name] for name, words in METRICS.items()}
    same = [row for row in rows if SAME in row["case"]]
    new = [row for row in rows if SAME not in row["case"]]
    panels = {"the same request in each step": same, "a new request in each step": new}
    return {title: part for title, part in panels.items() if part}


def title_of(rows: figures.Rows) -> str:
    """Return the claim: the ratios of each panel, and the time of vitcache's steps with a target."""
    parts = parts_of(rows).items()
    spans = [f"{figures.span(figures.values(part, VITCACHE))} ({title})" for title, part in parts]
    title = f"With vitcache a step of SGLang takes {' and '.join(spans)} times stock's time"
    judged = [row for row in rows if row["meets_target"] is not None]
    if not judged:
        return title
    verdict = "within the target" if all(row["meets_target"] for row in judged) else "a target is missed"
    took = figures.span([row["value"] for row in judged], "{:.0f}")
    return f"{title}; with 32 known images it takes {took} us: {verdict}"
