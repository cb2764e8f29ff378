"""Files that a bench's tools read: a wrong one ends the tool with one line that names the file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vitcache.bench import plot, split, tables
from vitcache.bench.harness import tune
from vitcache.bench.harness.record import FIELDS
from vitcache.bench.harness.result_lines import read

BEGUN = {"kind": "case", "bench": "x", "case": "y", "state": "begun", "number": 1, "count": 1}
NESTED = '{"kind": "row", "x": ' + "[" * 5000 + "]" * 5000 + "}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([NESTED], ":1 is not JSON: maximum recursion depth"),
        ([json.dumps(BEGUN).replace("1", "9" * 5000)], ":1 is not JSON: Exceeds the limit"),
        ([{"kind": "row"}], ":1 has no bench"),
        ([BEGUN, {"kind": "row", "bench": "z"}], ":2 is a row of a case that has not begun"),
        ([{**BEGUN, "state": "finished"}], ":1 ends a case that has not begun"),
        ([{**BEGUN, "bench": ["x"]}], ":1 has no bench"),
        ([{**BEGUN, "bench": "../../x"}], ":1 has no bench"),
        ([{**BEGUN, "bench": "\ud800"}], ":1 has no bench"),
        ([{**BEGUN, "number": "1"}], ":1 expected a number and a count"),
        ([{**BEGUN, "state": None}], ":1 expected a case and its state"),
        ([BEGUN, {"kind": "row", "bench": "x"}, {**BEGUN, "state": "finished"}], " has no case, contender"),
    ],
    ids=range(11),
)
def test_split_wrong_lines_end_with_the_file_and_the_line(
    tmp_path: Path, lines: list[object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    assert split.main([str(path), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"split: {path}")
    assert message in error
    assert list((tmp_path / "out").iterdir()) == []


def test_read_accepts_lines_of_kinds_that_no_case_has(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"kind": "test"}\n' + json.dumps(BEGUN) + "\n")
    assert [line["kind"] for line in read(path)] == ["test", "case"]


ROW = dict.fromkeys(FIELDS, "x")
WRONG = {
    "nested": "[" * 9000,
    "empty": "",
    "object": "{}",
    "numbers": "[1]",
    "lacking": json.dumps([{"bench": "ring"}]),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("tool", [plot.main, tables.main], ids=["plot", "tables"])
def test_tool_wrong_result_file_ends_with_its_name(
    tmp_path: Path,
    kind: str,
    tool: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "ring-cpu.json"
    path.write_text(WRONG[kind])
    page = tmp_path / "page.md"
    page.write_text("<!-- table: ring seconds -->\n<!-- end -->\n")
    given = [str(path)] if tool is plot.main else [str(page), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tool", *given])
    assert tool() == 1
    assert f": {path} is not " in capsys.readouterr().err
    assert page.read_text() == "<!-- table: ring seconds -->\n<!-- end -->\n"


@pytest.mark.parametrize("name", ["os", "../ring", "\ud800", 7])
def test_plot_of_an_unknown_bench_names_the_file(tmp_path: Path, name: object) -> None:
    path = tmp_path / "x-cpu.json"
    path.write_text(json.dumps([{**ROW, "bench": name}]))
    with pytest.raises(ValueError, match=r"x-cpu\.json: no bench has the name"):
        plot.plot(path)


def test_tune_wrong_result_file_is_refused_and_the_table_stands(tmp_path: Path) -> None:
    table = tmp_path / "blocks.json"
    table.write_text("{}")
    wrong = tmp_path / "blocks-gpu.json"
    wrong.write_text("[1]")
    with pytest.raises(ValueError, match=r"blocks-gpu\.json is not a result file: row 1 has no bench"):
        tune.tune([wrong], table)
    assert table.read_text() == "{}"
