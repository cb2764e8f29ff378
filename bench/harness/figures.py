"""Figures of results: rows of a bench, drawn in the style of `vitcache.demo.figure_style`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitcache.demo.figure_style import (
    BLACK,
    COLORS,
    GREY,
    LIGHT,
    STYLES,
    TARGET,
    Style,
    frame,
    images,
    number,
    open_figure,
    plain_ticks,
    span,
    styles,
    target,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "ERROR",
    "SPREAD",
    "STYLES",
    "Rows",
    "Style",
    "beside",
    "compare",
    "curve",
    "finish",
    "footer_of",
    "frame",
    "images",
    "log_ticks",
    "number",
    "open_figure",
    "plain_ticks",
    "point",
    "span",
    "styles",
    "target",
    "tick",
    "values",
    "whiskers",
]

Rows = Sequence[dict[str, Any]]
ERROR = {"markersize": 6, "capsize": 2, "elinewidth": 1, "linewidth": 1.5} | {
    "markeredgecolor": BLACK,
    "markeredgewidth": 0.4,
    "capthick": 1,
}
SPREAD = "Markers and bars are medians; error bars reach from the 20th to the 80th percentile."


def whiskers(row: dict[str, Any], scale: float = 1.0) -> list[list[float]]:
    """The lengths of a row's error bar, below and above its value, as ``Axes.errorbar`` takes them."""
    value = row["value"]
    return [[max(0.0, value - row["p20"]) * scale], [max(0.0, row["p80"] - value) * scale]]


def point(
    axes: Axes, row: dict[str, Any], place: float, look: Style, *, unit: str = "", scale: float = 1.0
) -> None:
    """Draw a row's value, times `scale`, with its error bar; in the format `mark` also beside the panel."""
    x = row["value"] * scale
    axes.axhline(place, color=LIGHT, linewidth=0.6, linestyle=":")
    axes.errorbar(x, place, xerr=whiskers(row, scale), **look.dot(), **ERROR, label=row["contender"])
    beside(axes, place, number(x) + unit)


def beside(axes: Axes, place: float, words: str, size: float = 8) -> None:
    """Write words at a height, right of the panel."""
    axes.annotate(words, (1.01, place), xycoords=("axes fraction", "data"), va="center", size=size)


def tick(axes: Axes, x: float, place: float) -> None:
    """Mark the largest value that a target allows."""
    look = {"color": BLACK, "marker": "|", "markersize": 13, "markeredgewidth": 2, "linestyle": "none"}
    axes.plot(x, place, **look, label=TARGET)


def compare(
    axes: Axes,
    rows: Rows,
    looks: dict[str, Style],
    *,
    unit: str = "",
    scale: float = 1.0,
    as_ratio: bool = False,
    targets: dict[tuple[str, str], float] | None = None,
) -> None:
    """Draw the `point` of each row on horizontal lines: a group per case, and a line per contender.

    With `as_ratio`, the values are the rows' ratios. `targets` has the largest value that the design allows,
    by case and contender, already scaled.
    """
    cases = list(dict.fromkeys(row["case"] for row in rows))
    present = [name for name in looks if any(row["contender"] == name for row in rows)]
    step = 0.8 / len(present)
    for row in sorted(rows, key=lambda row: present.index(row["contender"])):
        place = cases.index(row["case"]) + (present.index(row["contender"]) + 0.5) * step - 0.4
        # A count of 0, such as encodes, has the ratio 0.
        factor = scale if not as_ratio else row["ratio"] / row["value"] if row["value"] else 0.0
        point(axes, row, place, looks[row["contender"]], unit=unit, scale=factor)
        limit = (targets or {}).get((row["case"], row["contender"]))
        if limit is not None:
            tick(axes, limit, place)
    axes.set(ylim=(len(cases) - 0.5, -0.5))
    axes.set_yticks(range(len(cases)), cases)
    axes.grid(visible=False, axis="y")
    for border in range(1, len(cases)):
        axes.axhline(border - 0.5, color=GREY, linewidth=0.6)


def curve(axes: Axes, points: Sequence[tuple[float, dict[str, Any]]], look: Style, label: str) -> None:
    """Draw the values of rows over x on a line, with their error bars."""
    xs, rows = [x for x, _ in points], [row for _, row in points]
    below, above = zip(*((low, high) for row in rows for [low], [high] in [whiskers(row)]), strict=True)
    axes.errorbar(
        xs, [row["value"] for row in rows], yerr=[below, above], **look.curve(), **ERROR, label=label
    )


def log_ticks(axes: Axes, which: str = "x") -> None:
    """Label a logarithmic axis at round values: more of them if it is short, the powers of ten if it is long.

    An axis whose ends differ by a factor below 4 becomes linear: it has too few such values.
    """
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if high / low < 4:
        axes.set(**{f"{which}scale": "linear"})
        return
    factors = (1, 1.5, 2, 3, 5, 7) if high / low < 10 else (1, 2, 5) if high / low < 300 else (1,)
    found = [factor * 10.0**power for power in range(-6, 7) for factor in factors]
    plain_ticks(axes, [value for value in found if low <= value <= high], which)
    axes.set(**{f"{which}lim": (low, high)})


def finish(figure: Figure, rows: Rows, title: str, note: str = "", *, legend: bool = True) -> Figure:
    """Add the title, the legend of all panels, the note and the line about the machine; return the figure."""
    return frame(figure, title, note, footer_of(rows), legend=legend)


def footer_of(rows: Rows) -> str:
    """Return the line that names the bench, the machine, the versions and the day of the newest result."""
    row = max(rows, key=lambda row: str(row["utc"]))
    device = row["device"]
    place = f"a CPU ({device.removeprefix('cpu ')}), no GPU" if device.startswith("cpu") else device
    return (
        f"vitcache bench {row['bench']} on {place}; torch {row['torch']}; commit {row['commit']}; "
        f"{row['utc'][:10]}"
    )


def values(rows: Rows, contender: str, field: str = "ratio", metric: str | None = None) -> list[float]:
    """Return the values, or the ratios, of a contender's rows, without those that have none."""
    return [
        row[field]
        for row in rows
        if row["contender"] == contender and metric in (None, row["metric"]) and row[field] is not None
    ]
