"""`find_rich`: the names of rich, which is optional."""

from __future__ import annotations


class Rich:
    """The names of rich that this package uses."""

    def __init__(self) -> None:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Table
        from rich.text import Text

        self.SIMPLE_HEAD, self.Console, self.Table, self.Text = SIMPLE_HEAD, Console, Table, Text
        self.BarColumn, self.Progress = BarColumn, Progress
        self.TextColumn, self.TimeElapsedColumn = TextColumn, TimeElapsedColumn


def find_rich() -> Rich | None:
    """Return the names of rich, or None if it is not installed."""
    try:
        return Rich()
    except ImportError:
        return None
