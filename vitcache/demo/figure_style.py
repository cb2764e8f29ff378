"""One style for the figures of the demo and of the benches.

A figure is readable alone: its title is a sentence that the caller computes from the numbers, the legend is
above the panels, and the last line names the machine. The colours are those of Okabe and Ito (2008), which
colour-blind readers tell apart; each has a marker, a hatch and a line style of its own besides.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 9.0, 120  # inches, and pixels per inch: GitHub shows the figure about 900 pixels wide
BLACK, GREY, LIGHT = "#000000", "#595959", "#d9d9d9"  # limits and targets; words; grid
TARGET = "target: at most"
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", BLACK)
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 3)), (0, (1, 3)), (0, (8, 2)))
# Characters of a line of the title, of a note and of a legend, and the height of each line in inches.
_TITLE, _NOTE, _LEGEND = (80, 0.27), (150, 0.17), (112, 0.23)


@dataclass(frozen=True)
class Style:
    """The look of one contender: a colour, and three marks for readers who see no colours."""

    color: str
    hatch: str
    marker: str
    line: Any

    def bar(self) -> dict[str, Any]:
        """The arguments of ``Axes.barh``."""
        return {"color": self.color, "hatch": self.hatch, "edgecolor": "white", "linewidth": 0}

    def dot(self) -> dict[str, Any]:
        """The arguments of ``Axes.plot`` and ``Axes.errorbar`` for points without a line."""
        return {"color": self.color, "marker": self.marker, "linestyle": "none"}

    def curve(self) -> dict[str, Any]:
        """The arguments of ``Axes.plot`` and ``Axes.errorbar`` for points on a line."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.line}


STYLES = tuple(Style(*parts) for parts in zip(COLORS, _HATCHES, _MARKERS, _LINES, strict=True))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name, in order; the first name is vitcache's own side, in blue.

    Raises
    ------
    ValueError
        If the names are more than the styles: draw small multiples instead.
    """
    distinct = list(dict.fromkeys(names))
    if len(distinct) > len(STYLES):
        raise ValueError(f"expected at most {len(STYLES)} contenders in a figure, got {len(distinct)}")
    return dict(zip(distinct, STYLES, strict=False))


def open_figure(rows: int = 1, columns: int = 1, height: float = 3.2, **options: Any) -> tuple[Figure, Any]:
    """Return a figure whose panels are `height` inches high together, and the 2-D array of the panels.

    `options` are those of ``Figure.subplots``. `frame` adds the height of the words.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=LIGHT, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def target(axes: Axes, value: float, words: str, *, upright: bool = False) -> None:
    """Draw a labelled line at a value of the y axis, or of the x axis if it is `upright`."""
    draw_line = axes.axvline if upright else axes.axhline
    draw_line(value, color=BLACK, linewidth=1.2, linestyle=(0, (4, 2)))
    where: dict[str, Any] = {"xy": (0.99, value), "xycoords": ("axes fraction", "data"), "xytext": (0, 3)}
    if upright:
        where = {"xy": (value, 0.0), "xycoords": ("data", "axes fraction"), "xytext": (3, 4)}
    axes.annotate(words, **where, textcoords="offset points", size=8, ha="left" if upright else "right")


def plain_ticks(axes: Axes, values: Sequence[float], which: str = "x") -> None:
    """Label a logarithmic axis with these values as plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(values, [f"{value:,g}" for value in values])
    axis.set_ticks([], minor=True)


def frame(figure: Figure, title: str, note: str, footer: str, *, legend: bool = True) -> Figure:
    """Add the title, the legend of all panels, the note and the footer; return the figure."""
    head, notes = _balanced(title, _TITLE[0]), textwrap.wrap(note, _NOTE[0])
    handles: dict[str, Any] = {}
    for axes in figure.axes if legend else ():
        found, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    for axes in figure.axes:
        for which in "xy":
            if getattr(axes, f"get_{which}scale")() == "log":
                axes.set(**{f"{which}label": getattr(axes, f"get_{which}label")() + ", log scale"})
    if TARGET in handles:  # last
        handles[TARGET] = handles.pop(TARGET)
    columns = max(1, _LEGEND[0] // (max(map(len, handles), default=1) + 7))
    lines = -(-len(handles) // columns)
    above = 0.12 + len(head) * _TITLE[1] + lines * _LEGEND[1] + 0.1 * bool(lines)
    below = 0.15 + (len(notes) + 1) * _NOTE[1]
    height = figure.get_figheight() + above + below
    figure.set_size_inches(WIDTH, height)
    rect = (0.005, below / height, 0.99, 1 - (above + below) / height)
    figure.set_layout_engine("constrained", rect=rect)
    left = 0.1 / WIDTH
    figure.suptitle("\n".join(head), x=left, y=1 - 0.08 / height, ha="left", va="top", weight="bold", size=13)
    if handles:
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="upper left",
            bbox_to_anchor=(0, 1 - (0.1 + len(head) * _TITLE[1]) / height),
            ncols=columns,
            frameon=False,
            fontsize=9,
        )
    for words, bottom in (("\n".join(notes), 0.08 + _NOTE[1]), (footer, 0.06)):
        figure.text(left, bottom / height, words, size=8, color=GREY, linespacing=1.25, gid="note")
    return figure


def _balanced(title: str, width: int) -> list[str]:
    """Return the fewest lines of at most `width` characters, of about equal lengths."""
    fewest = len(textwrap.wrap(title, width))
    while width > 20 and len(textwrap.wrap(title, width - 1)) == fewest:
        width -= 1
    return textwrap.wrap(title, width)


def span(values: Iterable[float], form: str = "{:.2f}") -> str:
    """Return the smallest and the largest value as words: "1.03 to 1.41", or one value if they are alike."""
    ordered = sorted(values)
    ends = [form.format(ordered[0]), form.format(ordered[-1])]
    return " to ".join(dict.fromkeys(ends))


def images(count: int | str) -> str:
    """Return "1 image" or "32 images"."""
    return f"{count} image{'' if str(count) == '1' else 's'}"


def number(value: float) -> str:
    """Return a value with three digits, and never with an exponent if it is large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
