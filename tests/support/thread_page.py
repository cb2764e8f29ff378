"""Writes the table of docs/threads.md from the lines that the tests run, if it is run as a script."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "threads.md"
TABLE = re.compile(r"(<!-- threads -->\n).*?(?=<!-- end -->)", re.DOTALL)

if str(Path(__file__).parent) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(Path(__file__).parent))
from thread_table import PLACES, ROWS  # noqa: E402


def render() -> str:
    """Return the lines of the table."""
    head = ("object or call", *PLACES, "stream")
    lines = ["", _line(head), _line(["---"] * len(head))]
    for row in ROWS:
        lines.append(_line([row.name, *map(row.expected, PLACES), row.stream]))
    return "\n".join([*lines, ""])


def fill(text: str) -> str:
    """Return the text of the page with the new table."""
    return TABLE.sub(lambda match: match[1] + render(), text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
