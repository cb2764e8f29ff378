"""`vllm serve`: an API server, an engine core and a worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from engine_runner import chat
from engine_runner.cases import Case
from engine_runner.message import message
from engine_runner.pool import environment
from engine_runner.server_process import ServerProcess


class Server(ServerProcess):
    """The server of a case.

    `folder` gets the log. `variables` are added to the environment.
    """

    def __init__(
        self, python: str, model: Path, folder: Path, case: Case, variables: dict[str, str] | None = None
    ) -> None:
        command = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(model)]
        own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        super().__init__(
            [*command, "--served-model-name", "tiny", *flags(case)],
            environment(folder) | case.variables() | (variables or {}) | own,
            folder / f"{case.name}.log",
        )

    def ask(self, numbers: list[int]) -> list[int]:
        """The tokens of the answer to one turn."""
        body = {
            "model": "tiny",
            "temperature": 0,
            "max_tokens": 6,
            "ignore_eos": True,
            "return_token_ids": True,
            "messages": [message([chat.image(number) for number in numbers])],
        }
        answer = json.loads(self.get("/v1/chat/completions", json.dumps(body).encode()))
        return list(answer["choices"][0]["token_ids"])

    def counters(self) -> dict[str, float]:
        """vitcache's metrics by name, with all labels but those of the engine."""
        found: dict[str, float] = {}
        for line in self.get("/metrics").decode().splitlines():
            if match := re.match(r"(\w*:?vitcache\w*_total)(\{[^}]*\})? (\S+)", line):
                own = re.sub(r'(engine|model_name)="[^"]*",?', "", match[2] or "").strip("{},")
                found[f"{match[1]} {own}".strip()] = float(match[3])
        return found


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
