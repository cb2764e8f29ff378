"""Tables and progress of the commands: with rich where it is installed and a person reads, else plain."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

WIDTH = 80  # columns of plain output
REFRESH_S = 0.2  # between two changes of the progress


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
        """Print the table to stdout: with rich, if it is installed and stdout is a terminal, else plain."""
        rich = _rich() if sys.stdout.isatty() else None
        if rich is None:
            print("\n".join(self.plain_lines()))
        else:
            self._print_rich(rich)

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
        widths[self._flexible] = min(widths[self._flexible], max(WIDTH - others, 10))
        return widths

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

    def _print_rich(self, rich: Any) -> None:
        console = rich.Console(highlight=False)
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
                    head, justify=justify, min_width=0 if is_flexible else width, no_wrap=not is_flexible
                )
            for cells, style in rows:
                table.add_row(*map(rich.Text, cells), style=style or None)
            console.print(table)


class Progress:
    """Shows on stderr which step of long work runs; shows nothing if stderr is not a terminal.

    With rich it is a line with a bar and the elapsed time, else a line of text. The line is removed at the
    end. No thread changes the line: one would disturb the measurements of a bench.

    Examples
    --------
    >>> with Progress("memory") as progress:
    ...     for number in range(3):
    ...         progress.show(f"size {number + 1}", number, 3)
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._is_on = sys.stderr.isatty()
        self._erase = "\r\033[K" if self._is_on else ""
        self._rich: Any = None
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        rich = _rich() if self._is_on else None
        if rich is not None:
            self._rich = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(bar_width=20),
                rich.TimeElapsedColumn(),
                console=rich.Console(stderr=True),
                transient=True,
                auto_refresh=False,
            )
            self._task = self._rich.add_task(self._label, total=None)
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        elif self._is_on:
            print(self._erase, end="", file=sys.stderr, flush=True)

    def print(self, line: str) -> None:
        """Print a line to stderr, also if stderr is not a terminal. The progress continues below it."""
        if self._rich is not None:
            self._rich.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        print(f"{self._erase}{line}", file=sys.stderr, flush=True)

    def show(self, text: str, done: int = 0, total: int | None = None, *, is_frequent: bool = False) -> None:
        """Show a step, and that `done` of `total` parts are done.

        If the step `is_frequent`, it is left out within 0.2 seconds after the last change.
        """
        now = time.monotonic()
        if not self._is_on or (is_frequent and now - self._last < REFRESH_S):
            return
        self._last = now
        line = f"{self._label}: {text}"
        if self._rich is not None:
            room = max(WIDTH // 2, shutil.get_terminal_size().columns - 32)  # beside the bar and the time
            self._rich.update(self._task, description=_cut(line, room), completed=done, total=total)
            self._rich.refresh()
            return
        room = shutil.get_terminal_size().columns - 1
        elapsed = f" ({now - self._begin:.0f} s)"
        print(f"{self._erase}{_cut(line, room - len(elapsed))}{elapsed}", end="", file=sys.stderr, flush=True)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 3)]}..."


class _Rich:
    """The names of rich that this module uses."""

    def __init__(self) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Table
        from rich.text import Text

        self.SIMPLE_HEAD, self.Console, self.Table, self.Text = SIMPLE_HEAD, Console, Table, Text
        self.BarColumn, self.Progress = BarColumn, Progress
        self.TextColumn, self.TimeElapsedColumn = TextColumn, TimeElapsedColumn


def _rich() -> _Rich | None:
    """Return the names of rich, or None if it is not installed."""
    try:
        return _Rich()
    except ImportError:
        return None
