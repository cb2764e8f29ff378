"""Runs one command with a time limit. No process of the command outlives it."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

POLL_S = 0.05
MOST_BYTES = 1 << 16


class Ended(NamedTuple):
    """How a command ended: its exit code, and whether the time limit ended it."""

    code: int
    is_cut: bool


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    directory: Path,
    write: Callable[[bytes], object],
    limit_s: float,
    grace_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Ended:
    """Run a command and pass its output on, both streams together.

    After `limit_s` seconds the command gets SIGINT, and after `grace_s` more seconds it is killed with all
    processes that it started. The same happens if this function is interrupted.
    """
    begin = clock()
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a process group of its own, which is killed as a whole
    )
    output = process.stdout
    if output is None:
        raise RuntimeError("expected a pipe for the output of the command, got None")
    interrupted_at: float | None = None
    try:
        os.set_blocking(output.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            is_open = True
            while process.poll() is None:
                if is_open and selector.select(POLL_S):
                    is_open = _pass_on(output, write)
                elif not is_open:
                    time.sleep(POLL_S)
                now = clock()
                if interrupted_at is None and now - begin >= limit_s:
                    interrupted_at = now
                    # Only the first process: it ends its own children, and writes its results.
                    process.send_signal(signal.SIGINT)
                elif interrupted_at is not None and now - interrupted_at >= grace_s:
                    break
    except BaseException:
        _interrupt(process, grace_s)
        raise
    finally:
        _kill_group(process)
        _pass_on(output, write)
        output.close()
    # A command that ended well just before the signal is not cut.
    return Ended(process.returncode, interrupted_at is not None and process.returncode != 0)


def _pass_on(output: IO[bytes], write: Callable[[bytes], object]) -> bool:
    """Pass on the output so far. Return False at its end."""
    while True:
        try:
            part = os.read(output.fileno(), MOST_BYTES)
        except BlockingIOError:
            return True
        if not part:
            return False
        write(part)


def _interrupt(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill the command and all processes of its group, some of which may outlive the command."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
