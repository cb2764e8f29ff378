"""`Progress`: the step of long work, on stderr if it is a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import Any

from vitcache.terminal.rich_names import find_rich

BAR_WIDTH = 10
TIME_WIDTH = 7  # 0:00:00
REFRESH_S = 0.2  # between two changes of a frequent step


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
        rich = find_rich() if self._is_on else None
        if rich is not None:
            self._rich = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(bar_width=BAR_WIDTH),
                rich.TimeElapsedColumn(),
                console=rich.Console(stderr=True),
                transient=True,
                auto_refresh=False,
                # rich prints the output of other code above the line: to stderr, also if stdout is a file.
                redirect_stdout=sys.stdout.isatty(),
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
            room = shutil.get_terminal_size().columns - BAR_WIDTH - TIME_WIDTH - 3
            self._rich.update(self._task, description=_cut(line, room), completed=done, total=total)
            self._rich.refresh()
            return
        room = shutil.get_terminal_size().columns - 1
        elapsed = f" ({now - self._begin:.0f} s)"
        print(f"{self._erase}{_cut(line, room - len(elapsed))}{elapsed}", end="", file=sys.stderr, flush=True)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(0, width - 3)]}..."
