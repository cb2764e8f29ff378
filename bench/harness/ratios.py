"""Bars per case and contender, as multiples of a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The plot shows the first of these metrics that has a ratio in the file.
METRICS = ("device_us", "done_us", "step_us", "hits_us", "host_us")


def draw_ratios(rows: list[dict[str, Any]], panels: int = 1) -> Figure:
    """Draw the first of `METRICS` that has ratios; rows without a ratio are left out.

    `panels` is the number of panels in the figure. The bars are in the first panel; all other panels
    are empty.
    """
    from matplotlib.figure import Figure

    with_ratio = [row for row in rows if row["ratio"] is not None]
    found = {row["metric"] for row in with_ratio}
    metric = next((name for name in METRICS if name in found), None)
    if metric is None:
        raise ValueError(f"the bench {rows[0]['bench']} has no ratio to draw")
    rows = [row for row in with_ratio if row["metric"] == metric]
    # The limit of most rows is the line at 1. Contenders with another limit are left out.
    limit = max((row["ratio_to"] for row in rows), key=[row["ratio_to"] for row in rows].count)
    rows = [row for row in rows if row["ratio_to"] == limit]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    figure = Figure(figsize=(max(panels * (2 + 1.6 * len(cases)), 6.5), 4.5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0, 0]
    width = 0.8 / len(contenders)
    for index, contender in enumerate(contenders):
        ratios = {row["case"]: row["ratio"] for row in rows if row["contender"] == contender}
        offset = (index - (len(contenders) - 1) / 2) * width
        positions = [cases.index(case) + offset for case in ratios]
        axes.bar(positions, list(ratios.values()), width, label=contender)
    axes.axhline(1, color="black", linewidth=1, label=limit)
    axes.set_yscale("log")
    axes.set_xticks(range(len(cases)), cases)
    axes.set_ylabel(f"{metric} / {limit}")
    axes.set_title(f"{rows[0]['bench']}, {rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['commit']}")
    axes.legend(fontsize=8)
    return figure
