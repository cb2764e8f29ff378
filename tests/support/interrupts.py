"""Raises KeyboardInterrupt, or makes another call, at a chosen line of a call."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any


def raise_interrupt() -> None:
    """Raise KeyboardInterrupt, as Python's handler of SIGINT does."""
    raise KeyboardInterrupt


def interrupt(
    call: Callable[[], object],
    line: int,
    files: Collection[str],
    handler: Callable[[], object] = raise_interrupt,
) -> bool:
    """Call `handler` at the n-th line of a call that is in one of `files`. By default, it interrupts.

    Returns
    -------
    bool
        False if the call has fewer lines, so the handler was not called.
    """
    try:
        return act_at(call, line, files, handler)
    except KeyboardInterrupt:
        return True


def act_at(call: Callable[[], object], line: int, files: Collection[str], act: Callable[[], object]) -> bool:
    """Call `act` before the n-th line of a call that is in one of `files`, as a signal handler does.

    Python also traces the exit of a `with` block, at a point where no signal handler can run. An interrupt
    there would leave the lock locked, so it is not counted.

    Returns
    -------
    bool
        False if the call has fewer lines, so `act` was not called.
    """
    count = 0
    entered: set[tuple[FrameType, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        place = (frame, frame.f_lineno)
        if event == "line" and place not in entered:
            if linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
                entered.add(place)
            count += 1
            if count == line:
                act()  # not traced: Python traces no call of a trace function
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        entered.clear()  # the frames of the call, which would live until a garbage collection
    return count >= line
