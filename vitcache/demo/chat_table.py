"""The table of the demo: lines of text for a terminal, and Markdown for README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIDES = {"_stock": "stock", "_attach": "attach", "": "pipeline"}
_HEAD = "turn  images in  ----- images encoded ----  --- first token, ms ----  logits"
_WIDTHS = (4, 9, 6, 7, 9, 6, 7, 9, 7)


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a turn: turn, images, encodes and milliseconds of each side, logits."""
    return [
        str(row["turn"]),
        str(row["images"]),
        *(str(row[f"encoded{side}"]) for side in SIDES),
        *(f"{row[f'ttft_ms{side}']:.0f}" for side in SIDES),
        "equal" if row["equal"] else "DIFFER",
    ]


def text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table for a terminal, at most 80 columns wide."""
    names = ["", "prompt", *SIDES.values(), *SIDES.values(), ""]
    lines = [names, *(cells(row) for row in rows)]
    return [_HEAD, *("  ".join(map(str.rjust, line, _WIDTHS)).rstrip() for line in lines)]


def markdown(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table in Markdown, from the object of the demo's JSON file.

    It has the stock model and `attach`; below is a line with the machine and the sums.
    """
    rows = report["rows"]
    head = ("turn", "images encoded: stock", "vitcache", "first token: stock", "vitcache", "logits")
    lines = [head, ("--:",) * 5 + ("---",)]
    for row in rows:
        turn, _, stock, attach, _, stock_ms, attach_ms, _, logits = cells(row)
        lines.append((turn, stock, attach, f"{stock_ms} ms", f"{attach_ms} ms", logits))
    stock, attach = (sum(row[f"encoded{side}"] for row in rows) for side in ("_stock", "_attach"))
    runs = len(rows[0]["samples"]["ttft_ms_stock"])
    words = (
        f"{stock} images encoded by the stock model, {attach} by the attached model. {report['model']} with "
        f"random weights, {report['dtype']}, on {report['device']}; times are medians of {runs} runs."
    )
    return [*("| " + " | ".join(line) + " |" for line in lines), "", words]
