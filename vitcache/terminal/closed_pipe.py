"""A reader that closes the pipe, such as `head`, ends a command quietly, and a full disk with one line."""

from __future__ import annotations

import os
import select
import sys
from typing import TextIO

CLOSED_PIPE = 141  # 128 + SIGPIPE, as shells report it


def open_missing_streams() -> None:
    """Give a process that was started with a closed stdout or stderr the null device in its place.

    Without it, Python has None there: a message for stderr would be printed to stdout, and the next file that
    the process opens would get the number of stdout.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the process ends


def flush_streams() -> None:
    """Write the buffers of stdout and stderr. Raises BrokenPipeError if the reader closed the pipe."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def drop_closed_streams() -> bool:
    """Connect each stream whose reader closed its pipe to the null device; return whether there was one.

    Otherwise the interpreter writes buffered text to the pipe when it ends, and prints an ignored exception.
    """
    closed = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
    for stream in closed:
        _drop(stream)
    return bool(closed)


def drop_full_streams() -> None:
    """Connect each stream whose buffered text cannot be written, as on a full disk, to the null device."""
    for stream in (sys.stdout, sys.stderr):
        if _cannot_be_written(stream):
            _drop(stream)


def _drop(stream: TextIO) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _cannot_be_written(stream: TextIO) -> bool:
    """Return whether a flush fails: a stream keeps its buffered text after a failed write."""
    if _number_of(stream) is None:
        return False
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _has_no_reader(stream: TextIO) -> bool:
    number = _number_of(stream)
    if number is None:
        return False
    poll = select.poll()
    poll.register(number, 0)  # the system reports errors and hang-ups in any case
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _number_of(stream: TextIO) -> int | None:
    """Return the number of the stream's file; None for a stream in memory, or a closed one."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
