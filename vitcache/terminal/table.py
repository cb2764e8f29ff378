"""`Table`: by rich where it is installed and fits a terminal, else plain, in 80 columns."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from vitcache.terminal.rich_names import find_rich

WIDTH = 80  # columns of plain output
LEAST = 10  # columns of the flexible column that the other columns leave
GAP = 2  # columns between two cells of a table of rich


class Table:
    """Rows of cells under heads, in groups with a title each.

    Parameters
    ----------
    heads
        The head of each column.
    flexible
        The index of the column whose text is wrapped, so that a line has at most 80 characters.
    right
        The indices of the columns whose cells are aligned to the right.

    Examples
    --------
    >>> table = Table(["size", "hits"], right=(0, 1))
    >>> table.add("1 GiB", "50.0%")
    >>> table.add("16 GiB", "75.0%")
    >>> print("\\n".join(table.plain_lines()))
      size  hits
     1 GiB 50.0%
    16 GiB 75.0%
    """

    def __init__(self, heads: Sequence[str], *, flexible: int = 0, right: Sequence[int] = ()) -> None:
        self._heads = heads
        self._flexible = flexible
        self._right = frozenset(right)
        self._groups: list[tuple[str, list[tuple[tuple[str, ...], str]]]] = [("", [])]

    def begin_group(self, title: str) -> None:
        """Begin a group of rows below a line with this title."""
        self._groups.append((title, []))

    def add(self, *cells: str, style: str = "") -> None:
        """Add a row. `style` is a style of rich, which plain output ignores."""
        self._groups[-1][1].append((cells, style))

    def print(self) -> None:
        """Print the table to stdout: with rich, if it is installed and fits the terminal, else plain.

        rich cuts cells off if a terminal is too narrow for them. Plain lines are wrapped by the terminal.
        """
        rich = find_rich() if sys.stdout.isatty() else None
        console = rich.Console(highlight=False) if rich else None
        if rich is None or console is None or console.width < self._least_rich_width():
            print("\n".join(self.plain_lines()))
        else:
            self._print_rich(rich, console)

    def plain_lines(self) -> list[str]:
        """Return the lines of the plain form, with at most 80 characters if the other columns leave room."""
        widths = self._widths()
        lines = self._row_lines(self._heads, widths) if any(self._heads) else []
        for title, rows in self._groups:
            lines += textwrap.wrap(title, WIDTH)
            for cells, _ in rows:
                lines += self._row_lines(cells, widths)
        return lines

    def _widths(self) -> list[int]:
        rows = [self._heads, *(cells for _, group in self._groups for cells, _ in group)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        others = sum(widths) - widths[self._flexible] + len(widths) - 1
        widths[self._flexible] = min(widths[self._flexible], max(WIDTH - others, LEAST))
        return widths

    def _least_rich_width(self) -> int:
        """Return the columns that a table of rich needs, so that no cell is cut off."""
        widths = self._widths()
        widths[self._flexible] = min(widths[self._flexible], LEAST)
        return sum(widths) + GAP * (len(widths) - 1)

    def _row_lines(self, cells: Sequence[str], widths: list[int]) -> list[str]:
        """Return one line, or several if the text of the flexible column is longer than the column."""
        wrapped = textwrap.wrap(cells[self._flexible], widths[self._flexible], break_on_hyphens=False) or [""]
        lines = []
        for number, text in enumerate(wrapped):
            parts = ["" if number else cell for cell in cells]
            parts[self._flexible] = text
            aligned = (
                part.rjust(width) if column in self._right else part.ljust(width)
                for column, (part, width) in enumerate(zip(parts, widths, strict=True))
            )
            lines.append(" ".join(aligned).rstrip())
        return lines

    def _print_rich(self, rich: Any, console: Any) -> None:
        widths = self._widths()
        has_heads = any(self._heads)
        for title, rows in self._groups:
            if not rows and not title:
                continue
            if title:
                console.print(rich.Text(title, style="bold"))
            table = rich.Table(
                box=rich.SIMPLE_HEAD,
                show_edge=False,
                pad_edge=False,
                padding=(0, 1, 0, 0),
                show_header=has_heads,
            )
            for column, (head, width) in enumerate(zip(self._heads, widths, strict=True)):
                justify = "right" if column in self._right else "left"
                is_flexible = column == self._flexible
                table.add_column(
                    head,
                    justify=justify,
                    min_width=min(width, LEAST) if is_flexible else width,
                    no_wrap=not is_flexible,
                    overflow="fold",  # a path that is longer than its column stays complete
                )
            for cells, style in rows:
                table.add_row(*map(rich.Text, cells), style=style or None)
            console.print(table)
