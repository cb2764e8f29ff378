"""The figure of the bench `tiers`: a panel for each of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitcache.bench.claims.tier_reads import RAW, TIER
from vitcache.bench.claims.tier_restart import SECOND_HIT, WITHOUT
from vitcache.bench.claims.tier_waits import FETCH
from vitcache.bench.harness import figures
from vitcache.demo.figure_style import TARGET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Metric, words of the axis, factor, unit, whether the axis is logarithmic.
_PANELS = (
    ("fetch_gb_per_s", "fetch (GB/s; more is better)", 1.0, " GB/s", False),
    ("store_gb_per_s", "store of a new file (GB/s; more is better)", 1.0, " GB/s", False),
    ("past_deadline_us", "caller's time past its deadline, tier hangs (microseconds)", 1.0, " us", False),
    ("refused_us", "begin_fetch (microseconds)", 1.0, " us", True),
    ("step_us", "prefetch and step, each image is new (milliseconds)", 1e-3, " ms", False),
    ("open_us", "open of the folder (milliseconds)", 1e-3, " ms", False),
    ("exists_us", "exists of 32 entries (microseconds)", 1.0, " us", False),
    ("turn_ms", "turn after a restart (milliseconds)", 1.0, " ms", False),
    ("encodes", "images that the turn encodes", 1.0, "", False),
)


def draw(rows: figures.Rows) -> Figure:
    """Draw the results, each metric in a panel of its own."""
    panels = []
    for panel in _PANELS:
        found = [row for row in rows if row["metric"] == panel[0]]
        if found:
            panels.append((panel, found))
    heights = [0.35 + 0.16 * len(found) for _, found in panels]
    figure, axes = figures.open_figure(
        len(panels), 1, height=0.8 * len(panels) + sum(heights), height_ratios=heights
    )
    for [place], (panel, found) in zip(axes, panels, strict=True):
        _draw(place, found, *panel[1:])
    note = f"{RAW}: reads and writes of the same rows, without a checksum. Black: a target. {figures.SPREAD}"
    return figures.finish(figure, rows, title_of(rows), note, legend=False)


def _draw(axes: Axes, rows: figures.Rows, words: str, scale: float, unit: str, is_log: bool) -> None:
    looks = figures.styles(list(dict.fromkeys(row["contender"] for row in rows)))
    if is_log:
        axes.set_xscale("log")
    targets = {
        (row["case"], row["contender"]): scale * _limit_of(row) for row in rows if row["target"] is not None
    }
    figures.compare(axes, rows, looks, unit=unit, scale=scale, targets=targets)
    if is_log:
        figures.log_ticks(axes)
    else:
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set(xlabel=words, ylabel="case")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))  # one of each contender, and one target
    if TARGET in unique and rows[0]["metric"] == "fetch_gb_per_s":
        unique["target: at least"] = unique.pop(TARGET)
    look: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.14, 1.04), "frameon": False}
    axes.legend(unique.values(), unique, fontsize=8, **look)


def _limit_of(row: dict[str, Any]) -> float:
    """Return the value of a target: targets of rates and of steps are ratios."""
    is_ratio = row["metric"] in ("fetch_gb_per_s", "step_us")
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
