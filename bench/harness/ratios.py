"""Figures of contenders that are compared with a limit: each value as a multiple of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcache.bench.harness.figures import (
    SPREAD,
    Rows,
    compare,
    finish,
    log_ticks,
    open_figure,
    span,
    styles,
    target,
    values,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The figure shows the first of these metrics that has a ratio in the file.
METRICS = {
    "device_us": "time on the device",
    "done_us": "time until the copy is complete",
    "step_us": "time of the step",
    "hits_us": "time of the step",
    "host_us": "time of the host",
}


def draw_ratios(rows: Rows, ours: str, note: str = "", slack_us: float = 0.0) -> Figure:
    """Draw the first of `METRICS` that has ratios, as multiples of the limit that most rows have.

    `ours` begins the names of vitcache's own contenders. Rows without a ratio, and contenders with another
    limit, are left out. A target is a ratio, and `slack_us` microseconds more. The title compares `ours` with
    all other contenders.
    """
    with_ratio = [row for row in rows if row["ratio"] is not None]
    found = {row["metric"] for row in with_ratio}
    metric = next((name for name in METRICS if name in found), None)
    if metric is None:
        raise ValueError(f"the bench {rows[0]['bench']} has no ratio to draw")
    rows = [row for row in with_ratio if row["metric"] == metric]
    limit = max((row["ratio_to"] for row in rows), key=[row["ratio_to"] for row in rows].count)
    rows = [row for row in rows if row["ratio_to"] == limit]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    own = [name for name in names if name.startswith(ours) and name != limit]
    looks = styles([*own, *(name for name in names if name not in own)])
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, [[axes]] = open_figure(height=0.5 + len(cases) * (0.25 + 0.14 * len(names)))
    axes.set_xscale("log")
    compare(axes, rows, looks, as_ratio=True, targets=targets_of(rows, slack_us))
    target(axes, 1, f" 1 = {limit}", upright=True)
    log_ticks(axes)
    axes.set_xlabel(f"{METRICS[metric]} / that of: {limit} (less is better)")
    axes.set_ylabel("case")
    return finish(figure, rows, title_of(rows, own, names, limit), f"{note} {SPREAD}".strip())


def title_of(rows: Rows, own: list[str], names: list[str], limit: str) -> str:
    """Return the claim: the ratios of vitcache's contenders, and those of all other contenders."""
    ours = [ratio for name in own for ratio in values(rows, name)]
    rest = [ratio for name in names if name not in (*own, limit) for ratio in values(rows, name)]
    title = f"vitcache takes {span(ours)} times the time of its limit ({limit})"
    return title + (f"; all other contenders take {span(rest)} times" if rest else "")


def targets_of(rows: Rows, slack_us: float = 0.0) -> dict[tuple[str, str], float]:
    """Return the targets as ratios, by case and contender: a row's target, and the microseconds of slack."""
    return {
        (row["case"], row["contender"]): row["target"] + slack_us * row["ratio"] / row["value"]
        for row in rows
        if row["target"] is not None
    }
