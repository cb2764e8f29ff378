"""The figure of the bench `fleet`: time saved and load of the links over the number of machines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from vitcache.bench.harness import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CASE = re.compile(r"(?P<rows>\d+ KiB rows), (?P<machines>\d+) machines, (?P<route>[a-z ]+)")
_DISK, _STORE = "disk per machine", "25 GbE"
_PANELS = (("encode_s", "encode time saved (%)"), ("link_share", "load of the busiest link (%)"))


def draw(rows: figures.Rows) -> Figure:
    """Draw, for each route and each width of rows, the time saved and the load over the machines."""
    points = [point for row in rows if (point := _point(row)) is not None]
    columns = list(dict.fromkeys(point.column for point in points))
    looks = figures.styles(point.contender for point in points if point.metric == "encode_s")
    figure, panels = figures.open_figure(
        len(_PANELS), len(columns), height=2.4 * len(_PANELS), sharex=True, sharey="row"
    )
    for line, (metric, words) in zip(panels, _PANELS, strict=True):
        most = max(point.percent for point in points if point.metric == metric)
        for axes, column in zip(line, columns, strict=True):
            _draw(axes, [p for p in points if (p.metric, p.column) == (metric, column)], looks)
            axes.set(xlabel="machines", ylabel=words, ylim=(0, 1.05 * most))
            axes.set_title(column, fontsize=8)
    note = (
        "A simulation: nothing was encoded or sent. Saved: of the encode time of the images that a machine "
        "has in neither tier. Load: of a link of the storage nodes, one for each eight machines. Chats share "
        "logos and documents by Zipf's distribution. A request is sent to the machine of its session, or to "
        "a random one."
    )
    return figures.finish(figure, rows, title_of(points), note)


class _Point(NamedTuple):
    """A point of a panel: the time saved or the load, in percent."""

    column: str
    machines: int
    contender: str
    metric: str
    percent: float


def _point(row: dict[str, Any]) -> _Point | None:
    """Return the point of a row; None for another metric, another number of nodes, or no store."""
    match = _CASE.fullmatch(row["case"])
    if match is None or row["metric"] not in dict(_PANELS) or row["contender"] == row["ratio_to"]:
        return None
    share = 1 - row["ratio"] if row["metric"] == "encode_s" else row["value"]
    column = f"{match['rows']}, {match['route']}"
    return _Point(column, int(match["machines"]), row["contender"], row["metric"], 100 * share)


def _draw(axes: Axes, points: list[_Point], looks: dict[str, figures.Style]) -> None:
    for name, look in looks.items():
        line = [(point.machines, point.percent) for point in points if point.contender == name]
        if line:
            axes.plot(*zip(*line, strict=True), **look.curve(), markersize=4, label=name)
    axes.set_xscale("log")
    figures.plain_ticks(axes, sorted({point.machines for point in points}))


def title_of(points: list[_Point]) -> str:
    """Return the claim: the time that the largest fleet saves, over routes and rows."""
    most = max(point.machines for point in points)
    saved = [point for point in points if (point.metric, point.machines) == ("encode_s", most)]
    store = [point.percent for point in saved if point.contender == _STORE]
    disk = [point.percent for point in saved if point.contender == _DISK]
    return (
        f"Simulated: {most} machines that share a store over {_STORE} save {figures.span(store, '{:.0f}')} % "
        f"of the encode time of their misses; with a disk per machine {figures.span(disk, '{:.0f}')} %"
    )
