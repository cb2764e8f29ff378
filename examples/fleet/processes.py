"""Processes of this machine that end together: with the ``with`` block, and if their parent is killed."""

from __future__ import annotations

import ctypes
import select
import shutil
import signal
import subprocess
import sysconfig
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitcache.extras import need_of

STOP_S = 5.0  # a process that has not ended by then is killed
_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class FleetError(RuntimeError):
    """A process ended, was late, or cannot start."""


class Processes:
    """Starts processes, and ends all of them when the ``with`` block ends. For the main thread.

    Parameters
    ----------
    logs
        The folder of the logs, one file per process.
    limit_s
        Most seconds from now that the methods wait together.
    """

    def __init__(self, logs: Path, limit_s: float) -> None:
        self._logs = logs
        self._limit_s = limit_s
        self._end = time.monotonic() + limit_s
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes. An interrupt cannot cut this short: it takes `STOP_S` at most."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for process in reversed(self._running.values()):
            process.terminate()
        end = time.monotonic() + STOP_S
        for process in self._running.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name: str, command: list[str]) -> Any:
        """Start a process with pipes as its stdin and stdout; return its `Popen`. stderr is its log.

        The process has a session of its own, so that Ctrl-C reaches only the parent, which ends it. If the
        parent is killed, Linux kills the process.
        """
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        self._running[name] = process
        print(f"{name}: pid {process.pid}", flush=True)
        return process

    def wait(self) -> None:
        """Wait for a moment.

        Raises
        ------
        FleetError
            If a process has ended, or the limit is over.
        """
        self._check()
        time.sleep(_POLL_S)

    def read_line(self, process: Any) -> bytes:
        """Return the next line of a process. Raises FleetError as `wait`."""
        line = b""
        while not line.endswith(b"\n"):
            self._check()
            if select.select([process.stdout], [], [], _POLL_S)[0]:
                line += process.stdout.read(1)
        return line

    def _check(self) -> None:
        for name, process in self._running.items():
            if process.poll() is not None:
                raise FleetError(f"{name} ended with code {process.returncode}{self._last_words(name)}")
        if time.monotonic() > self._end:
            raise FleetError(f"the processes did not answer within {self._limit_s:g} s")

    def _last_words(self, name: str) -> str:
        """Return the last lines of a log."""
        with suppress(OSError):
            lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
            return "".join(f"\n  {line[:200]}" for line in lines[-4:])
        return ""


def find_program(name: str) -> str:
    """Return the path of a program of Mooncake: beside this Python, or on PATH.

    Raises
    ------
    FleetError
        If Mooncake is not installed. The message has the command that installs it.
    """
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise FleetError(f"{name} {need_of('mooncake')}")
    return found
