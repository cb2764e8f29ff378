"""The outputs of the demo: progress, the table, the closing words, the JSON file and the plot.

The JSON file is one object. These keys are stable: `device` and `rows`, and in each row `turn`, `images`,
`encoded_stock`, `encoded`, `hits`, `vision_ms_stock`, `vision_ms`, `ttft_ms_stock`, `ttft_ms` and `equal`.
The file has more keys, and later versions may add some: a program that reads it must ignore unknown keys.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_COLUMNS = ("images", "encoded", "hits", "vision ms", "TTFT ms", "pixels MB", "equal", "spread")
_LEGEND = """\
Numbers are stock / vitcache with the pipeline / vitcache with attach.
images     images in the prompt: every turn adds one
encoded    images, counted at the vision tower; for stock, images in its input
hits       images found in the cache, with the pipeline
vision ms  from pixels in host memory to rows in `inputs_embeds`, with hashing
TTFT ms    from ids and pixels in host memory to the first token in host memory
pixels MB  pixels that entered the vision tower, copied to the GPU if there is
           one; for stock, pixels in its input
equal      logits of all positions, with the pipeline and with attach, are bit
           for bit those of stock with its images encoded one at a time
spread     largest difference of a logit between stock with its images encoded
           one at a time and stock with its images encoded in one batch"""


@dataclass(frozen=True)
class Row:
    """The results of one turn: the stock model (`_stock`), `attach` (`_attach`) and the pipeline (no suffix).

    The reference is the stock model's logits with its images encoded one at a time. `equal` says
    whether the logits of both `attach` and the pipeline equal the reference bit for bit; `equal_attach` is
    for `attach` only. `spread_stock` is the largest difference of a logit between the reference and the
    stock model with its images encoded in one batch. Encoded images and bytes of host pixels are counted at
    the vision tower. No hook is set on the stock model, so its numbers are those of its input. The last two
    fields are `placed_calls` and `unplaced_calls` of `vitcache.AttachStats`, for this turn.
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
    placed_calls_attach: int
    unplaced_calls_attach: dict[str, int]


class Progress:
    """Shows the current step on stderr: one changing line on a terminal, one line per step elsewhere."""

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
    """Return the numbers of the last turn, and whether the logits were equal in every turn, as sentences."""
    last = rows[-1]
    unequal = [str(row.turn) for row in rows if not row.equal]
    verdict = (
        f"Logits differed in turn {', '.join(unequal)}."
        if unequal
        else "Logits were equal in every turn, with the pipeline and with attach."
    )
    return (
        f"In turn {last.turn} the stock model encoded {_images(last.encoded_stock)} in "
        f"{last.vision_ms_stock:.1f} ms; vitcache encoded {last.encoded}, found {last.hits} in its cache and "
        f"took {last.vision_ms:.1f} ms. "
        f"The first token took {last.ttft_ms:.0f} ms instead of {last.ttft_ms_stock:.0f} ms. {verdict} "
        f"{_placed_words(rows)}"
    )


def _placed_words(rows: Sequence[Row]) -> str:
    """Return how many forward calls of the attached model were placed, and each reason against it."""
    placed = sum(row.placed_calls_attach for row in rows)
    unplaced: Counter[str] = Counter()
    for row in rows:
        unplaced.update(row.unplaced_calls_attach)
    words = (
        f"With attach, {placed} of {placed + unplaced.total()} forward calls were placed: the rows of the "
        "images were written once, from the cache or the encoder into `inputs_embeds`."
    )
    for reason, number in unplaced.items():
        words += f" In {number} the stock merge got a copy of the rows, because {reason}."
    return words


def write_json(path: Path, rows: Sequence[Row], machine: dict[str, str]) -> None:
    """Write the rows and the description of the machine to a JSON file."""
    path.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


def write_plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """Draw vision time against turn, for the stock model and for vitcache, to a PNG file."""
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
