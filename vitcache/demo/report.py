"""What the demo shows: progress, the table, the closing words, the JSON file and the plot.

The JSON file is one object. Promised are its keys `device` and `rows`, and in each of the rows `turn`,
`images`, `encoded_stock`, `encoded`, `hits`, `vision_ms_stock`, `vision_ms`, `ttft_ms_stock`, `ttft_ms` and
`equal`. There are others, and more may come: a reader should pass over those that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_COLUMNS = ("images", "encoded", "hits", "vision ms", "TTFT ms", "pixels MB", "equal", "spread")
_LEGEND = """\
Figures are stock / vitcache through the pipeline / vitcache through attach.
images     so far: every turn adds one
encoded    counted at the vision tower; for stock, the images it was handed
hits       found in the cache, through the pipeline
vision ms  from pixels in host memory to rows in `inputs_embeds`; with hashes
TTFT ms    from ids and pixels in host memory to the first token there
pixels MB  of host pixels counted at the vision tower, moved to the GPU if there
           is one; for stock, those it was handed
equal      logits of all positions, through the pipeline and through attach, are
           bit for bit those of stock with its images encoded one at a time
spread     largest difference of a logit between that and stock's batched encode"""


@dataclass(frozen=True)
class Row:
    """What one turn took: the stock model (`_stock`), `attach` (`_attach`), and `embed_tokens` (the others).

    `equal` holds the logits of both against the stock model's with the same images encoded one at a time.
    `spread_stock` is how far the stock model's own batched encode is from that: the largest difference of a
    logit. Images encoded and bytes of host pixels are counted at the vision tower, but for the stock model,
    on which nothing is installed: they are what it was handed.
    """

    turn: int
    images: int
    encoded_stock: int
    encoded: int
    encoded_attach: int
    hits: int
    hits_attach: int
    vision_ms_stock: float
    vision_ms: float
    ttft_ms_stock: float
    ttft_ms: float
    ttft_ms_attach: float
    pixel_bytes_stock: int
    pixel_bytes: int
    pixel_bytes_attach: int
    equal: bool
    equal_attach: bool
    spread_stock: float


class Progress:
    """Says what is being done: one changing line on a terminal, one line per step elsewhere. On stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._status = self._console.status("")

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._status.stop()

    def step(self, text: str) -> None:
        """Show `text` until the next step."""
        if self._console.is_terminal:
            self._status.update(text)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)


def print_report(rows: Sequence[Row], title: str) -> None:
    """Print the table and the closing words to stdout."""
    console = Console(highlight=False)
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, 1),
    )
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row.images),
            f"{row.encoded_stock} / {row.encoded}",
            str(row.hits),
            _join(row.vision_ms_stock, row.vision_ms),
            _join(row.ttft_ms_stock, row.ttft_ms, row.ttft_ms_attach),
            _join(row.pixel_bytes_stock / 1e6, row.pixel_bytes / 1e6),
            "yes" if row.equal else "NO",
            f"{row.spread_stock:.1g}",
        )
    console.print(table)
    console.print(_LEGEND, style="dim")
    console.print()
    console.print(closing_words(rows))


def closing_words(rows: Sequence[Row]) -> str:
    """The last turn in a sentence, and whether every turn was equal."""
    last = rows[-1]
    unequal = [str(row.turn) for row in rows if not row.equal]
    verdict = (
        f"Logits differed in turn {', '.join(unequal)}."
        if unequal
        else "Logits were equal in every turn, through the pipeline and through attach."
    )
    return (
        f"In turn {last.turn} the stock model encoded {_images(last.encoded_stock)} in "
        f"{last.vision_ms_stock:.1f} ms; vitcache encoded {last.encoded}, found {last.hits} in its cache and "
        f"took {last.vision_ms:.1f} ms. "
        f"The first token came after {last.ttft_ms:.0f} ms instead of {last.ttft_ms_stock:.0f} ms. {verdict}"
    )


def write_json(path: Path, rows: Sequence[Row], machine: dict[str, str]) -> None:
    """Write what the table shows, and where it was measured."""
    path.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def write_plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw vision time against turn, for both, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    turns = [row.turn for row in rows]
    axes.plot(
        turns, [row.vision_ms_stock for row in rows], "o-", color="tab:gray", label="stock: all images again"
    )
    axes.plot(turns, [row.vision_ms for row in rows], "o-", color="tab:blue", label="vitcache: the new image")
    axes.set(title=title, xlabel="turn (one new image each)", ylabel="vision time (ms)", xticks=turns)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, format="png", dpi=150)


def _join(*values: float) -> str:
    return " / ".join(f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in values)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
