"""The commands of docs/sglang.md: a server starts with the printed one, and answers the printed calls."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
from doc_pages.blocks import Block, blocks_of
from engine_runner import chat
from engine_runner.pool import Pool
from sglang_runner.server import Server

pytestmark = pytest.mark.full
PAGE = "docs/sglang.md"
PRINTED_URL = "http://localhost:30000"
LIMIT_S = 60


def blocks(command: str) -> list[Block]:
    """The blocks of the page that have a command."""
    return [block for block in blocks_of(PAGE) if block.language == "bash" and command in block.code]


class PrintedServer(Server):
    """A server that bash starts with a printed block.

    The block finds a script `sglang` on PATH. The script adds the flags of a test machine: a port, a small KV
    cache, and the functions of a CPU.
    """

    def __init__(self, pool: Pool, code: str) -> None:
        super().__init__(pool.python, pool.model("qwen3"), pool.folder, "printed", ["vitcache"])
        start, flags = self._command[:1], self._command[4:]
        flags[flags.index("--mem-fraction-static") + 1] = "0.9"  # the printed size of the cache is reserved
        script = pool.folder / "printed/sglang"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(start)} "$@" {shlex.join(flags)}\n')
        script.chmod(0o755)
        self._command = ["bash", "-c", code]
        self._environment["MODEL"] = str(self.model)
        self._environment["PATH"] = f"{script.parent}:{self._environment['PATH']}"

    def run(self, code: str) -> str:
        """The output of a printed block that calls the server. CalledProcessError if it fails."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code.replace(PRINTED_URL, self.url)],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=LIMIT_S,
        ).stdout


def test_printed_commands_start_a_server_and_call_it(pool: Pool) -> None:
    pool.wait()
    pool.say("server printed starts")
    with PrintedServer(pool, blocks("sglang serve")[0].code) as server:
        server.chat([chat.image(0)])
        [counts], [flush], [update] = (
            blocks(call) for call in ("/server_info", "/flush_cache", "/update_weights")
        )
        assert "'encodes': 1," in server.run(counts.code)
        assert "Cache flushed" in server.run(flush.code)
        assert server.counts()["cache"]["entries"] == 0
        server.chat([chat.image(0)])
        assert json.loads(server.run(update.code))["success"]
        server.chat([chat.image(0)])
        assert "'encodes': 3," in server.run(counts.code)
        server.stop()
        server.wait_for_end()
