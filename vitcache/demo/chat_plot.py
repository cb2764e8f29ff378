"""The picture of the demo: encoded images and the time to the first token by turn, stock beside vitcache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import quantiles

from vitcache.demo.figure_style import frame, open_figure, styles
from vitcache.demo.row import Row
from vitcache.terminal.result_file import save_figure

STOCK, ATTACHED = "stock model", "the same model with vitcache.attach"


def write_plot(path: Path, rows: Sequence[Row], machine: Mapping[str, str]) -> None:
    """Draw the picture of a conversation on a machine to a PNG file."""
    figure, [[left, right]] = open_figure(columns=2, height=3.0)
    looks = styles((ATTACHED, STOCK))
    turns = [row.turn for row in rows]
    for shift, name, suffix in ((-0.2, STOCK, "_stock"), (0.2, ATTACHED, "_attach")):
        encoded = [getattr(row, f"encoded{suffix}") for row in rows]
        bars = left.bar([turn + shift for turn in turns], encoded, 0.38, **looks[name].bar())
        left.bar_label(bars, fontsize=8)
        samples = [row.samples[f"ttft_ms{suffix}"] for row in rows]
        middle = [getattr(row, f"ttft_ms{suffix}") for row in rows]
        ends = [_spread(times) for times in samples]
        below = [value - low for value, (low, _) in zip(middle, ends, strict=True)]
        above = [high - value for value, (_, high) in zip(middle, ends, strict=True)]
        error = {"yerr": [below, above], "capsize": 3, "elinewidth": 1, "markersize": 6}
        right.errorbar(turns, middle, **looks[name].curve(), **error, label=name)
    left.set(ylabel="images encoded in the turn", xlabel="turn (each adds one image)", xticks=turns)
    right.set(ylabel="time to the first token (ms)", xlabel="turn (each adds one image)", xticks=turns)
    right.set_ylim(bottom=0)
    left.grid(visible=False, axis="x")
    left.yaxis.get_major_locator().set_params(integer=True)  # images
    runs = len(rows[0].samples["ttft_ms_stock"])
    spread = f" Times: medians of {runs} runs; error bars: 20th to 80th percentile." if runs > 1 else ""
    footer = (
        f"vitcache demo: {machine['model']} with random weights, {machine['dtype']}, on {machine['device']}; "
        f"torch {machine['torch']}; transformers {machine['transformers']}; {machine['date']}"
    )
    frame(figure, title_of(rows), f"Each turn's prompt repeats all earlier images.{spread}", footer)
    save_figure(figure, path, "png")


def _spread(times: Sequence[float]) -> tuple[float, float]:
    """Return the 20th and the 80th percentile."""
    if len(times) == 1:
        return times[0], times[0]
    first, *_, last = quantiles(times, n=5, method="inclusive")
    return first, last


def title_of(rows: Sequence[Row]) -> str:
    """Return the claim: the images that both sides encoded, and whether the logits were equal."""
    stock, attached = sum(row.encoded_stock for row in rows), sum(row.encoded_attach for row in rows)
    unequal = sum(not row.equal_attach for row in rows)
    logits = f"logits differ in {unequal} of {len(rows)} turns" if unequal else "all logits are equal"
    turns = "1 turn" if len(rows) == 1 else f"{len(rows)} turns"
    return f"A chat of {turns}: the stock model encodes {stock} images, vitcache {attached}; {logits}"
