"""`Progress`: shown on stderr in a terminal only, by rich where it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from terminal_process import run_in_terminal

from vitcache.terminal import progress as module
from vitcache.terminal.progress import Progress

ESCAPE = "\r\033[K"


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stderr be a terminal of 80 columns, and rich not installed."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(module, "find_rich", lambda: None)


def test_progress_shows_nothing_if_stderr_is_not_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("bench") as progress:
        progress.show("step", 1, 2)
        progress.print("a message")
    captured = capsys.readouterr()
    assert captured.err == "a message\n"
    assert captured.out == ""


def test_progress_without_rich_changes_one_line_and_removes_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_terminal(monkeypatch)
    with Progress("bench") as progress:
        progress.show("step " * 40)
        progress.print("a message")
    first, second, last = capsys.readouterr().err.removeprefix(ESCAPE).split(ESCAPE)
    assert first.startswith("bench: step step")
    assert first.endswith("... (0 s)")
    assert len(first) < 80
    assert second == "a message\n"
    assert last == ""


def test_text_for_a_stdout_that_is_no_terminal_stays_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("bench") as progress:
        progress.show("step")
        print("a result")
    captured = capsys.readouterr()
    assert captured.out == "a result\n"
    assert "bench: step" in captured.err


def test_progress_leaves_out_frequent_steps_that_follow_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_terminal(monkeypatch)
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    progress = Progress("bench")
    progress.show("one")
    progress.show("two", is_frequent=True)
    now = 2 * module.REFRESH_S
    progress.show("three", is_frequent=True)
    shown = capsys.readouterr().err
    assert [word for word in ("one", "two", "three") if word in shown] == ["one", "three"]


@pytest.mark.parametrize("without", [(), ("rich",)], ids=["rich", "plain"])
def test_memory_of_a_trace_in_a_terminal_shows_its_steps(tmp_path: Path, without: tuple[str, ...]) -> None:
    if not without:
        pytest.importorskip("rich")
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f'{{"key": "{number % 8}", "tokens": 16}}\n' for number in range(24)))
    code, lines = run_in_terminal(["memory", "--trace", str(path)], without=without)
    assert code == 0
    assert any("memory: simulates" in line for line in lines)
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("without", [(), ("rich",)], ids=["rich", "plain"])
def test_bench_keys_in_a_terminal_shows_each_step_and_a_table(
    tmp_path: Path, without: tuple[str, ...]
) -> None:
    pytest.importorskip("skimage")
    arguments = ["bench", "--bench", "keys", "--cases", "smoke", "--out", str(tmp_path)]
    code, lines = run_in_terminal(arguments, without=without)
    assert code == 0
    for step in ("photographs and tower", "encode and image processor", "all keys in turns"):
        assert any(step in line for line in lines), step
    assert any(line.lstrip().startswith("contender") for line in lines)
    assert ("─" in "".join(lines).replace("━", "")) is not bool(without)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80


@pytest.mark.transformers
@pytest.mark.parametrize("without", [(), ("rich",)], ids=["rich", "plain"])
def test_demo_in_a_terminal_shows_its_steps_and_the_table(without: tuple[str, ...]) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("skimage")
    code, lines = run_in_terminal(["demo", "--turns", "1", "--repeats", "1"], without=without)
    assert code == 0
    assert any("demo: turn 1 of 1: " in line for line in lines)
    assert any(line.split()[:4] == ["1", "1", "1", "1"] for line in lines)
    assert max(map(len, lines)) <= 80
