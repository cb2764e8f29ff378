"""The command line without a home, streams, files or space. No earlier result is lost."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal_process import command_line, environment

TRACE = '{"key": "a", "tokens": 16}\n' * 5


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(TRACE)
    return path


def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"env": environment(), **options}
    return subprocess.run(command_line(arguments), capture_output=True, text=True, timeout=120, **options)


def limit(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


def test_plot_beyond_the_file_size_limit_keeps_the_earlier_picture(trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "hits.png"
    arguments = ["memory", "--trace", str(trace), "--plot", str(picture)]
    assert run(arguments).returncode == 0
    earlier = picture.read_bytes()
    done = run(arguments, preexec_fn=limit(resource.RLIMIT_FSIZE, 1024))
    assert (done.returncode, picture.read_bytes()) == (1, earlier)
    assert os.strerror(errno.EFBIG) in done.stderr
    assert str(picture) in done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hits.png", "trace.jsonl"]


def test_output_beyond_the_file_size_limit_ends_with_one_line(trace: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(
            command_line(["memory", "--trace", str(trace)]),
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=limit(resource.RLIMIT_FSIZE, 16),
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (1, f"vitcache: {os.strerror(errno.EFBIG)}\n")


def test_command_with_few_open_files_ends_with_a_line_that_says_so(trace: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["memory", "--trace", str(trace), "--plot", str(trace.with_name("hits.png"))]
    done = run(arguments, preexec_fn=limit(resource.RLIMIT_NOFILE, 6))
    assert done.returncode == 1
    assert done.stderr.startswith("vitcache")
    assert os.strerror(errno.EMFILE) in done.stderr


@pytest.mark.parametrize("home", [None, "/nonexistent", "/dev/null"])
def test_command_without_a_home_prints_its_numbers(trace: Path, home: str | None) -> None:
    variables = {name: value for name, value in environment().items() if name != "HOME"}
    done = run(
        ["memory", "--trace", str(trace)], env=variables if home is None else {**variables, "HOME": home}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("5 images, 1 of them different")


def test_command_with_closed_streams_returns_its_exit_code(trace: Path) -> None:
    for arguments, code in ((["memory", "--trace", str(trace)], 0), (["memory", "--trace", "missing"], 1)):
        closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command_line(arguments)]
        assert subprocess.run(closed, env=environment(), timeout=120).returncode == code
