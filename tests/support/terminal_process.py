"""Runs `vitcache` in a process of its own: in a pseudo-terminal, with a closed pipe, without a package."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]")
ROOT = Path(__file__).parents[2]


def command_line(arguments: Sequence[str], *, without: Sequence[str] = ()) -> list[str]:
    """Return a command that runs `vitcache`; an import of a package in `without` fails."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({list(without)!r})); "
        f"from vitcache.__main__ import main; sys.exit(main({list(arguments)!r}))"
    )
    return [sys.executable, "-P", "-c", code]


def environment() -> dict[str, str]:
    """The environment of this process without a width of the terminal, and with buffered streams."""
    names = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED")
    return {**{k: v for k, v in os.environ.items() if k not in names}, "TERM": "xterm"}


def run_in_terminal(arguments: Sequence[str], *, without: Sequence[str] = ()) -> tuple[int, list[str]]:
    """Run `vitcache` with stdout and stderr in a terminal of 80 columns.

    Returns the exit code, and the text of each line and of each change of a line, without escape sequences.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        command_line(arguments, without=without),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment(),
        close_fds=True,
    )
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the last process closed the terminal
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    text = ESCAPES.sub("", b"".join(chunks).decode())
    return process.wait(), re.split(r"[\r\n]+", text)


def run_with_closed_pipe(
    arguments: Sequence[str], stream: str, *, is_buffered: bool = True
) -> tuple[int, str]:
    """Run `vitcache` with a pipe without a reader as stdout or stderr.

    Returns the exit code and the text of the other stream.
    """
    unbuffered = {} if is_buffered else {"PYTHONUNBUFFERED": "1"}
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    try:
        process = subprocess.Popen(
            command_line(arguments),
            env=environment() | unbuffered,
            text=True,
            **{stream: writer, other: subprocess.PIPE},  # type: ignore[call-overload]
        )
    finally:
        os.close(writer)
    outputs = process.communicate()
    return process.returncode, outputs[0 if other == "stdout" else 1]
