"""examples/fleet/run.py with real processes of Mooncake: its table, and the end of every process."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("mooncake.store", reason="needs libibverbs1", exc_type=ImportError)

RUN = Path(__file__).parents[2] / "examples/fleet/run.py"
LIMIT_S = 100.0
NAMES = ["master", "node-1", "node-2", "vitcache-1", "vitcache-2"]


class Fleet:
    """The example in a process of its own, and a handle of each process that it starts."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.handles: dict[str, int] = {}

    def wait_until_started(self) -> None:
        """Read the names of the processes that the example prints."""
        for name in NAMES:
            line = self.process.stdout.readline()
            found = re.fullmatch(r"([\w-]+): pid (\d+)\n", line)
            assert found, f"{line!r}, {self.process.communicate()}"
            assert found[1] == name
            self.handles[name] = os.pidfd_open(int(found[2]))

    def running(self) -> list[str]:
        """The processes that have not ended within the limit."""
        return [
            name for name, handle in self.handles.items() if not select.select([handle], [], [], LIMIT_S)[0]
        ]

    def end(self) -> tuple[int, str, str]:
        """Wait for the example; return its exit code and its output."""
        out, error = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, error


@contextmanager
def fleet(*arguments: str) -> Iterator[Fleet]:
    """Start the example. Its own folder must be on the path, as when a user starts it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    process = subprocess.Popen(
        [sys.executable, RUN, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = Fleet(process)
    try:
        yield started
    finally:
        process.kill()
        process.communicate()
        for handle in started.handles.values():
            os.close(handle)


@pytest.mark.transformers
def test_fleet_encodes_each_image_once_with_equal_logits_and_ends() -> None:
    with fleet("--turns", "4") as started:
        started.wait_until_started()
        code, out, error = started.end()
        assert code == 0, error
        rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
        # encodes, stored, KB stored, fetched, KB fetched, logits
        first, second, both = (rows[name] for name in ("vitcache-1", "vitcache-2", "fleet"))
        assert (first[:2], first[3]) == (["2", "2"], "2")
        assert (second[:2], second[3]) == (["2", "2"], "2")
        assert (both[:2], both[3]) == (["4", "4"], "4")
        assert first[2] == second[4] != "0"
        assert second[2] == first[4] != "0"
        assert first[-1] == second[-1] == both[-1] == "equal"
        assert started.running() == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_to_the_example_ends_every_process(number: int, code: int) -> None:
    with fleet() as started:
        started.wait_until_started()
        started.process.send_signal(number)
        assert started.end()[0] == code
        assert started.running() == []


@pytest.mark.parametrize("name", ["master", "node-2", "vitcache-1"])
def test_a_killed_process_ends_the_example_with_its_name(name: str) -> None:
    with fleet() as started:
        started.wait_until_started()
        signal.pidfd_send_signal(started.handles[name], signal.SIGKILL)
        code, _, error = started.end()
        assert code == 1
        assert error.startswith(f"{name} ended with code -9")
        assert started.running() == []


def test_a_stopped_process_is_killed_when_the_example_ends() -> None:
    with fleet() as started:
        started.wait_until_started()
        signal.pidfd_send_signal(started.handles["node-1"], signal.SIGSTOP)
        started.process.send_signal(signal.SIGINT)
        assert started.end()[0] == 130
        assert started.running() == []


def test_example_without_mooncake_names_the_extra(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(RUN.parent)!r}); import processes; "
        "processes.sysconfig.get_path = lambda name: '/nonexistent'; "
        "processes.find_program('mooncake_master')"
    )
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (
        "mooncake_master needs mooncake-transfer-engine-non-cuda: pip install 'vitcache[mooncake]'"
        in done.stderr
    )
