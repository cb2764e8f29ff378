"""The figure of the bench `tiers`: a panel for each of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from vitcache.bench.claims.tier_reads import RAW, TIER
from vitcache.bench.claims.tier_restart import SECOND_HIT, WITHOUT
from vitcache.bench.claims.tier_waits import FETCH
from vitcache.bench.harness import figures
from vitcache.demo.figure_style import TARGET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL_WIDTH = 34  # characters of a line of a legend


@dataclass(frozen=True)
class Panel:
    """A metric: the words of its axis, the unit and factor of its values, and the direction of its target."""

    metric: str
    words: str
    unit: str = ""
    scale: float = 1.0
    is_log: bool = False
    at_least: bool = False


_PANELS = (
    Panel("fetch_gb_per_s", "fetch (GB/s; more is better)", " GB/s", at_least=True),
    Panel("store_gb_per_s", "store of a new file (GB/s; more is better)", " GB/s", at_least=True),
    Panel("past_deadline_us", "caller's time past its deadline, tier hangs (microseconds)", " us"),
    Panel("refused_us", "begin_fetch (microseconds)", " us", is_log=True),
    Panel("step_us", "prefetch and step, each image is new (milliseconds)", " ms", scale=1e-3),
    Panel("open_us", "open of the folder (milliseconds)", " ms", scale=1e-3),
    Panel("exists_us", "exists of 32 entries (microseconds)", " us"),
    Panel("turn_ms", "turn after a restart (milliseconds)", " ms"),
    Panel("encodes", "images that the turn encodes"),
)


def draw(rows: figures.Rows) -> Figure:
    """Draw the results, each metric in a panel of its own."""
    note = f"{RAW}: reads and writes of the same rows, without a checksum. Black: a target. {figures.SPREAD}"
    return draw_panels(rows, _PANELS, title_of(rows), note)


def draw_panels(rows: figures.Rows, panels: Sequence[Panel], title: str, note: str) -> Figure:
    """Draw the metrics of `panels` that have results, one below the other."""
    shown = []
    for panel in panels:
        found = [row for row in rows if row["metric"] == panel.metric]
        if found:
            shown.append((panel, found))
    heights = [0.35 + 0.16 * len(found) for _, found in shown]
    figure, axes = figures.open_figure(
        len(shown), 1, height=0.8 * len(shown) + sum(heights), height_ratios=heights
    )
    for [place], (panel, found) in zip(axes, shown, strict=True):
        _draw(place, found, panel)
    return figures.finish(figure, rows, title, note, legend=False)


def _draw(axes: Axes, rows: figures.Rows, panel: Panel) -> None:
    looks = figures.styles(list(dict.fromkeys(row["contender"] for row in rows)))
    if panel.is_log:
        axes.set_xscale("log")
    targets = {
        (row["case"], row["contender"]): panel.scale * _limit_of(row)
        for row in rows
        if row["target"] is not None
    }
    figures.compare(axes, rows, looks, unit=panel.unit, scale=panel.scale, targets=targets)
    if panel.is_log:
        figures.log_ticks(axes)
    else:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set(xlabel=panel.words, ylabel="case")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))  # one of each contender, and one target
    if TARGET in unique and panel.at_least:
        unique["target: at least"] = unique.pop(TARGET)
    look: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.14, 1.04), "frameon": False}
    axes.legend(unique.values(), [fill(label, _LABEL_WIDTH) for label in unique], fontsize=8, **look)


def _limit_of(row: dict[str, Any]) -> float:
    """Return the value of a target: targets of rates and of steps are ratios."""
    is_ratio = row["metric"] in ("fetch_gb_per_s", "store_gb_per_s", "step_us")
    return float(row["target"] * (row["value"] / row["ratio"] if is_ratio else 1))


def title_of(rows: figures.Rows) -> str:
    """Return the claim: rates, waits and encodes of this file."""
    parts = []
    shares = figures.values(rows, TIER, metric="fetch_gb_per_s")
    if shares:
        parts.append(f"A disk tier reads at {figures.span(shares)} of the rate of direct I/O")
    past = figures.values(rows, FETCH, "value", "past_deadline_us")
    if past:
        parts.append(f"a tier that hangs delays a caller {max(past) / 1e3:.2f} ms past its deadline")
    encodes = [figures.values(rows, name, "value", "encodes") for name in (WITHOUT, SECOND_HIT)]
    if all(encodes):
        without, kept = (int(found[0]) for found in encodes)
        parts.append(f"a restarted chat encodes {kept} images, not {without}")
    return "; ".join(parts)
