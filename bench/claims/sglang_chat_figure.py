"""The figure of the bench `sglang_chat`: the first token and the encoded images, turn by turn."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vitcache.bench.harness import figures
from vitcache.bench.sglang.chat_engines import HOST_TIER, NAMES, STOCK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {"ttft_ms": "first token (ms)", "encoded": "images encoded"}


def draw(rows: figures.Rows) -> Figure:
    """Draw a column per size of the images, over the turns."""
    matches = [(re.fullmatch(r"(.+) turn (\d+)", row["case"]), row) for row in rows]
    points = [(match[1], int(match[2]), row) for match, row in matches if match]
    sizes = list(dict.fromkeys(size for size, _, _ in points))
    looks = figures.styles((HOST_TIER, *NAMES))
    figure, panels = figures.open_figure(len(METRICS), len(sizes), height=4.6, sharex="col")
    for line, (metric, words) in zip(panels, METRICS.items(), strict=True):
        for axes, size in zip(line, sizes, strict=True):
            for name in NAMES:
                chosen = [
                    (turn, row)
                    for found, turn, row in points
                    if (found, row["contender"], row["metric"]) == (size, name, metric)
                ]
                if chosen:
                    figures.curve(axes, chosen, looks[name], name)
            axes.set(title=size, xlabel="turn, one new image each", ylabel=words, ylim=(0, None))
            axes.xaxis.get_major_locator().set_params(integer=True)
    return figures.finish(figure, rows, title_of(rows), note_of(rows))


def title_of(rows: figures.Rows) -> str:
    """Return the claim: the images that a turn encodes."""
    encoded = [row for row in rows if row["metric"] == "encoded"]
    own, stock = (
        figures.span(figures.values(encoded, name, "value"), "{:.0f}") for name in (HOST_TIER, STOCK)
    )
    return (
        f"Engines of SGLang, one chat: with vitcache and a host tier a turn encodes {figures.images(own)}, "
        f"with stock {stock}"
    )


def note_of(rows: figures.Rows) -> str:
    """Return the note: the answers of the model that reads digits, if the bench has asked it."""
    different = [
        row for row in rows if row["metric"] == "different_answers" and row["contender"] != "swapped"
    ]
    if not different:
        return figures.SPREAD
    counts = figures.span([row["value"] for row in different], "{:.0f}")
    asked = different[0]["unit"]
    return f"{figures.SPREAD} A model that reads digits: {counts} {asked} answers differ from stock's."
