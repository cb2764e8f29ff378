"""Commands with a time limit: their output, how they are ended, and that none of their processes survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from gpu_runner.processes import Ended, run

READY = "print('ready', flush=True)"
IGNORE = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
SLEEP = "import time; time.sleep(60)"


class FastClock:
    """A clock that runs `factor` times as fast as time, from the moment when the command prints a line."""

    def __init__(self, factor: float = 100) -> None:
        self._factor, self._begin = factor, 0.0
        self.output = b""

    def __call__(self) -> float:
        return (time.monotonic() - self._begin) * self._factor if self._begin else 0.0

    def write(self, text: bytes) -> None:
        self.output += text
        self._begin = self._begin or time.monotonic()


def run_python(source: str, clock: FastClock, limit_s: float = 5, grace_s: float = 100) -> Ended:
    return run(
        [sys.executable, "-c", source],
        env=os.environ,
        directory=Path.cwd(),
        write=clock.write,
        limit_s=limit_s,
        grace_s=grace_s,
        clock=clock,
    )


@pytest.mark.parametrize("code", [0, 3])
def test_command_output_of_both_streams_and_its_exit_code_are_returned(code: int) -> None:
    clock = FastClock(factor=0)
    source = f"import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit({code})"
    assert run_python(source, clock) == Ended(code, False)
    assert clock.output == b"out\nerr\n"


def test_command_past_its_limit_gets_sigint_and_may_write_its_results() -> None:
    clock = FastClock()
    source = f"""
try:
    {READY}
    {SLEEP}
except KeyboardInterrupt:
    print("saved")
    raise SystemExit(130)
"""
    assert run_python(source, clock) == Ended(130, True)
    assert clock.output == b"ready\nsaved\n"


def test_command_that_ignores_sigint_is_killed_after_the_grace() -> None:
    clock = FastClock()
    ended = run_python(f"{IGNORE}; {READY}; {SLEEP}", clock, grace_s=10)
    assert ended == Ended(-signal.SIGKILL, True)


def test_command_that_finishes_in_spite_of_sigint_is_not_cut() -> None:
    clock = FastClock()
    source = f"{IGNORE}; {READY}; import time; time.sleep(0.2)"
    assert run_python(source, clock, limit_s=1) == Ended(0, False)


def process_exists(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_process_that_outlives_its_command_is_killed() -> None:
    clock = FastClock(factor=0)
    source = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "{SLEEP}"])
print(child.pid, flush=True)
"""
    assert run_python(source, clock) == Ended(0, False)
    child = int(clock.output)
    deadline = time.monotonic() + 5
    while process_exists(child) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert not process_exists(child)


def test_interrupt_of_the_run_ends_the_command() -> None:
    output: list[bytes] = []

    def write(text: bytes) -> None:
        output.append(text)
        if len(output) == 1:
            raise KeyboardInterrupt

    source = f"import os; print(os.getpid(), flush=True); {SLEEP}"
    with pytest.raises(KeyboardInterrupt):
        run(
            [sys.executable, "-c", source],
            env=os.environ,
            directory=Path.cwd(),
            write=write,
            limit_s=60,
            grace_s=5,
        )
    assert not process_exists(int(output[0]))
    assert b"KeyboardInterrupt" in output[1]


def test_command_receives_sigint_though_the_shell_of_the_run_ignores_it() -> None:
    """A shell that starts a job in the background makes it ignore SIGINT; the runner sets a handler."""
    support = Path(__file__).parents[1] / "support"
    inner = f"{READY}; {SLEEP}"
    source = f"""
import os, signal, sys
from pathlib import Path
from gpu_runner import __main__
from gpu_runner.processes import run
signal.signal(signal.SIGINT, __main__._interrupt)
ready = []
ended = run(
    [sys.executable, "-c", {inner!r}], env=os.environ, directory=Path("."), write=ready.append,
    limit_s=1, grace_s=30, clock=lambda: 2.0 * bool(ready),
)
sys.exit(0 if ended.is_cut and ended.code == -signal.SIGINT else 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(support)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert done.returncode == 0
