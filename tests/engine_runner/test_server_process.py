"""A server in a process of its own, with small programs in place of engines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from engine_runner.server_process import ServerProcess

ANSWERS = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def server(folder: Path, program: str) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", program], dict(os.environ), folder / "logs" / "server.log")


def test_server_answers_and_ends_when_it_is_interrupted(tmp_path: Path) -> None:
    with server(tmp_path, ANSWERS) as running:
        assert running.get("/state") == b"/state"
        [title] = running.processes().values()
        assert str(running.port) in title
        running.stop()
        running.wait_for_end()
    assert running.has_ended()


def test_killed_server_has_ended(tmp_path: Path) -> None:
    with server(tmp_path, ANSWERS) as running:
        running.kill(f"--port {running.port}")
        running.wait_for_end()
        assert running.has_ended()


def test_server_that_does_not_start_raises_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no memory\nthe server ended before it was up"):
        server(tmp_path, "raise SystemExit('no memory')").__enter__()
