"""`ServerProcess`: a server that answers over HTTP, in a session of its own with all its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from engine_runner.pool import TAIL_LINES

START_LIMIT_S = 240
STOP_LIMIT_S = 60
ANSWER_LIMIT_S = 60
POLL_S = 0.2
SHARED_MEMORY = Path("/dev/shm")


class ServerProcess:
    """A context manager: starts the server, and at the end stops it with all its processes.

    `command` gets a host and a port, and `log` the output. `/health` must answer when the server is up.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait_for(self._is_up, START_LIMIT_S, "did not start")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def get(self, path: str, body: bytes | None = None) -> bytes:
        """The answer to a GET, or to a POST of a body in JSON. HTTPError if its status is an error."""
        request = urllib.request.Request(self.url + path, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as answer:
            return bytes(answer.read())

    def processes(self) -> dict[int, str]:
        """The processes of the server's session that are alive, and their titles."""
        found: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, ProcessLookupError):
                if self._process and os.getsid(int(folder.name)) == self._process.pid:
                    title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    if title:  # a zombie has none
                        found[int(folder.name)] = title
        return found

    def process(self, title: str) -> int:
        """The id of the one process whose title has these words."""
        [process] = [process for process, name in self.processes().items() if title in name]
        return process

    def kill(self, title: str) -> None:
        """Kill the one process whose title has these words, as the kernel does when memory is short."""
        os.kill(self.process(title), signal.SIGKILL)

    def stop(self) -> None:
        """Interrupt the server, if it still runs, and wait until it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_LIMIT_S)

    def wait_for_end(self) -> None:
        """Wait until no process of the server is alive."""
        self.wait_for(lambda: self.has_ended() and not self.processes(), STOP_LIMIT_S, "has processes left")

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def wait_for(self, condition: Callable[[], bool], limit_s: float, complaint: str) -> None:
        """Ask again and again; RuntimeError with the end of the log if that takes too long."""
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > end:
                titles = ", ".join(self.processes().values())
                raise RuntimeError(
                    f"{self.tail()}\nthe server {complaint} within {limit_s} s; processes: {titles}"
                )
            time.sleep(POLL_S)

    def tail(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def _is_up(self) -> bool:
        if self.has_ended():
            raise RuntimeError(f"{self.tail()}\nthe server ended before it was up")
        with suppress(OSError):
            self.get("/health")
            return True
        return False


def shared_memory() -> set[str]:
    """The names of the files in /dev/shm."""
    return {path.name for path in SHARED_MEMORY.iterdir()}
