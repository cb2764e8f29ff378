"""`Table`: plain lines of at most 80 columns, and rich in a terminal."""

from __future__ import annotations

import pytest
from terminal_process import ESCAPES

from vitcache.terminal import table as module
from vitcache.terminal.table import Table


def make_table() -> Table:
    table = Table(["name", "value"], right=[1])
    table.begin_group("a group")
    table.add("word " * 40, "1")
    table.add("x", "12345")
    return table


def test_plain_lines_wrap_the_flexible_column_within_80_columns() -> None:
    lines = make_table().plain_lines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1] == "a group"
    assert [line.split()[-1] for line in lines if line.endswith(("1", "5"))] == ["1", "12345"]
    assert " ".join(lines).count("word") == 40


def test_plain_lines_keep_a_word_that_is_longer_than_the_column_complete() -> None:
    table = Table(["path", "n"])
    table.add("/folder" * 20, "1")
    assert "".join(line.split()[0] for line in table.plain_lines()[1:]) == "/folder" * 20


def test_print_is_plain_unless_stdout_is_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table()
    table.print()
    assert capsys.readouterr().out.splitlines() == table.plain_lines()


def test_print_in_a_terminal_without_rich_is_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(module, "find_rich", lambda: None)
    table = make_table()
    table.print()
    assert capsys.readouterr().out.splitlines() == table.plain_lines()


def test_print_in_a_terminal_with_rich_has_all_cells_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    table = make_table()
    table.add("[red] is text", "2")
    table.print()
    text = ESCAPES.sub("", capsys.readouterr().out)
    assert "─" in text
    assert "[red] is text" in text
    assert text.count("word") == 40
    assert max(map(len, text.splitlines())) <= 80


def print_in_terminal(
    table: Table, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    table.print()
    return ESCAPES.sub("", capsys.readouterr().out)


@pytest.mark.parametrize("columns", range(20, 100))
def test_print_with_rich_cuts_no_number_off_in_any_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    numbers = [f"{number},191" for number in range(1, 9)]
    table = Table(["image", *(f"in {number} GiB" for number in range(1, 9))], right=range(1, 9))
    table.add("1280x720", *numbers)
    text = print_in_terminal(table, columns, monkeypatch, capsys)
    assert text.split()[-9:] == ["1280x720", *numbers]


def test_print_with_rich_keeps_a_word_that_is_longer_than_the_column_complete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    table = Table(["part", "path"], flexible=1)
    table.add("CUDA", "/folder" * 20)
    text = print_in_terminal(table, 60, monkeypatch, capsys)
    assert "".join(text.partition("CUDA")[2].split()) == "/folder" * 20
