"""A reader such as `head` that closes the pipe ends each command quietly, as it ends other tools."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from terminal_process import command_line, environment, run_with_closed_pipe

from vitcache.terminal.closed_pipe import CLOSED_PIPE

TRACE = "".join(f'{{"key": "{number % 8}", "tokens": 16}}\n' for number in range(24))
MODEL = ["--model", "qwen2_vl", "--images", "160x160"]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(TRACE)
    return path


def test_exit_code_is_that_of_a_process_that_sigpipe_ended() -> None:
    assert CLOSED_PIPE == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["--version"], ["info"], ["info", "--json"], ["bench", "--list"], ["memory", "--help"]],
    ids=" ".join,
)
def test_closed_stdout_ends_the_command_quietly(arguments: Sequence[str]) -> None:
    assert run_with_closed_pipe(arguments, "stdout") == (CLOSED_PIPE, "")


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_closed_stdout_ends_memory_of_a_trace_quietly(trace: Path, options: Sequence[str]) -> None:
    assert run_with_closed_pipe(["memory", "--trace", str(trace), *options], "stdout") == (CLOSED_PIPE, "")


@pytest.mark.transformers
def test_closed_stdout_ends_memory_of_a_model_quietly() -> None:
    pytest.importorskip("transformers")
    assert run_with_closed_pipe(["memory", *MODEL], "stdout") == (CLOSED_PIPE, "")


def test_closed_stdout_ends_a_bench_quietly_and_keeps_its_results(tmp_path: Path) -> None:
    arguments = ["bench", "--bench", "policy", "--cases", "smoke", "--out", str(tmp_path)]
    assert run_with_closed_pipe(arguments, "stdout") == (CLOSED_PIPE, "")
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.transformers
@pytest.mark.parametrize("is_buffered", [True, False], ids=["buffered", "unbuffered"])
def test_closed_stdout_ends_the_demo_quietly(is_buffered: bool) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("skimage")
    arguments = ["demo", "--turns", "1", "--repeats", "1"]
    code, errors = run_with_closed_pipe(arguments, "stdout", is_buffered=is_buffered)
    assert code == CLOSED_PIPE
    assert "Traceback" not in errors
    assert "ignored" not in errors
    assert "Broken pipe" not in errors


def test_closed_stderr_ends_a_command_that_writes_to_it_quietly(tmp_path: Path) -> None:
    arguments = ["memory", "--trace", str(tmp_path / "none")]
    assert run_with_closed_pipe(arguments, "stderr") == (CLOSED_PIPE, "")


def test_closed_stderr_does_not_disturb_a_command_that_writes_nothing_to_it() -> None:
    code, output = run_with_closed_pipe(["--version"], "stderr")
    assert code == 0
    assert output.startswith("vitcache ")


@pytest.mark.parametrize(("number", "stream"), [(1, "stdout"), (2, "stderr")])
def test_missing_stream_is_replaced_and_its_text_is_dropped(tmp_path: Path, number: int, stream: str) -> None:
    """`>&-` and `2>&-` start a process without the stream."""
    arguments = command_line(["memory", "--trace", str(tmp_path / "none")])
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {number}>&-', "sh", *arguments],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == (0 if stream == "stderr" else 1)


def test_interrupt_during_a_command_exits_with_130(tmp_path: Path) -> None:
    fifo = tmp_path / "trace"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        command_line(["memory", "--trace", str(fifo)]), stderr=subprocess.PIPE, text=True, env=environment()
    )
    with fifo.open("w") as writer:  # opens once the command reads
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert not writer.closed
    assert process.returncode == 130
    assert errors == "vitcache: interrupted\n"
