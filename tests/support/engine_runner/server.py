"""`vllm serve` in a session of its own: an API server, an engine core and a worker."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine_runner import chat
from engine_runner.cases import Case
from engine_runner.pool import TAIL_LINES, environment

START_LIMIT_S = 240
STOP_LIMIT_S = 60
ANSWER_LIMIT_S = 60
POLL_S = 0.2
SHARED_MEMORY = Path("/dev/shm")


class Server:
    """A context manager: starts the server, and at the end stops it with all its processes.

    `folder` gets the log. `variables` are added to the environment.
    """

    def __init__(
        self, python: str, model: Path, folder: Path, case: Case, variables: dict[str, str] | None = None
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / f"{case.name}.log"
        command = [
            python,
            "-m",
            "vllm.entrypoints.cli.main",
            "serve",
            str(model),
            "--served-model-name",
            "tiny",
        ]
        self._command = [*command, "--host", "127.0.0.1", "--port", str(port), *flags(case)]
        self._environment = environment(folder) | case.variables() | (variables or {})
        self._environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
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

    def ask(self, numbers: list[int]) -> list[int]:
        """The tokens of the answer to one turn."""
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(number)}} for number in numbers
        ]
        body = {
            "model": "tiny",
            "temperature": 0,
            "max_tokens": 6,
            "ignore_eos": True,
            "return_token_ids": True,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "Describe it."}]}],
        }
        answer = json.loads(self._get("/v1/chat/completions", json.dumps(body).encode()))
        return list(answer["choices"][0]["token_ids"])

    def counters(self) -> dict[str, float]:
        """vitcache's metrics by name, with all labels but those of the engine."""
        found: dict[str, float] = {}
        for line in self._get("/metrics").decode().splitlines():
            if match := re.match(r"(\w*:?vitcache\w*_total)(\{[^}]*\})? (\S+)", line):
                own = re.sub(r'(engine|model_name)="[^"]*",?', "", match[2] or "").strip("{},")
                found[f"{match[1]} {own}".strip()] = float(match[3])
        return found

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

    def kill(self, title: str) -> None:
        """Kill the one process whose title has these words, as the kernel does when memory is short."""
        [process] = [process for process, name in self.processes().items() if title in name]
        os.kill(process, signal.SIGKILL)

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
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
                titles = ", ".join(self.processes().values())
                raise RuntimeError(f"{tail}\nthe server {complaint} within {limit_s} s; processes: {titles}")
            time.sleep(POLL_S)

    def _is_up(self) -> bool:
        if self.has_ended():
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise RuntimeError(f"{tail}\nthe server ended before it was up")
        with suppress(OSError):
            self._get("/health")
            return True
        return False

    def _get(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as answer:
            return bytes(answer.read())


def flags(case: Case) -> Iterator[str]:
    """The options of a case as flags of `vllm serve`."""
    for name, value in case.options().items():
        if name == "disable_log_stats":
            continue  # False is the default of a server
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield from (f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value))


def data_url(number: int) -> str:
    """An image as a URL that contains it."""
    buffer = io.BytesIO()
    chat.image(number).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shared_memory() -> set[str]:
    """The names of the files in /dev/shm."""
    return {path.name for path in SHARED_MEMORY.iterdir()}
