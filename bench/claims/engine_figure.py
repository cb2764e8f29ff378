"""The figure of the bench `engines`: the host's time of a step of vLLM, and the counts of one chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcache.bench.engines.contenders import PLACED, STOCK
from vitcache.bench.harness import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNTS = {
    "encodes": "images encoded",
    "feature_bytes": "bytes of features\nto the encoder",
    "written_bytes": "bytes written by\nsteps of hits",
}


def draw(rows: figures.Rows) -> Figure:
    """Draw above, without and with deepstack, the host's time by hits; below, the counts of a chat."""
    steps = [row for row in rows if row["metric"] == "host_us"]
    counts = [row for row in rows if row["metric"] in COUNTS and row["ratio"] is not None]
    names = list(dict.fromkeys(row["contender"] for row in (*steps, *counts)))
    looks = figures.styles([PLACED, STOCK, *names])
    figure, panels = figures.open_figure(2, 2, height=6.6, height_ratios=(7, 3))
    for axes, has_levels in zip(panels[0], (False, True), strict=True):
        some = [row for row in steps if ("deepstack" in row["case"]) == has_levels]
        draw_steps(axes, [{**row, "case": words_of(row["case"])} for row in some], looks)
        axes.set_title("3 deepstack levels" if has_levels else "no deepstack levels")
    chats = list(dict.fromkeys(row["case"] for row in counts))
    for axes, case in zip(panels[1], chats, strict=False):
        some = [{**row, "case": COUNTS[row["metric"]]} for row in counts if row["case"] == case]
        figures.compare(axes, some, looks, as_ratio=True)
        axes.set(xlim=(0, None), xlabel="count / that of stock; less is better", ylabel="count", title=case)
    for axes in panels[1][len(chats) :]:
        axes.set_visible(False)
    if len(chats) == 1:  # one chat takes the whole line
        grid = panels[1][0].get_subplotspec().get_gridspec()
        panels[1][0].set_subplotspec(grid[1, :])
    note = f"Less is better. A step of Model Runner V2 that builds inputs_embeds. {figures.SPREAD}"
    return figures.finish(figure, rows, title_of(steps, counts), note)


def words_of(case: str) -> str:
    """Return "1 hit" for "1 hits, 3 deepstack levels"."""
    name = case.split(",")[0]
    return "1 hit" if name == "1 hits" else name


def draw_steps(axes: Axes, rows: figures.Rows, looks: dict[str, figures.Style]) -> None:
    """Draw the microseconds of steps by their hits."""
    if not rows:
        axes.set_visible(False)
        return
    axes.set_xscale("log")
    figures.compare(axes, rows, looks, unit=" us")
    figures.log_ticks(axes)
    axes.set(xlabel="host's time (microseconds)", ylabel="images of a step")


def title_of(steps: figures.Rows, counts: figures.Rows) -> str:
    """Return the claim: the host's time of vitcache's steps of hits, and its encodes."""
    hits = [row for row in steps if "hits" in row["case"]]
    took = figures.span(figures.values(hits, PLACED))
    title = f"In vLLM a step of hits takes the host {took} times stock's time"
    own, stock = (figures.values(counts, contender, "value", "encodes") for contender in (PLACED, STOCK))
    if own and stock:
        title += f"; one chat encodes {own[0]:.0f} images, with stock {stock[0]:.0f}"
    return title
