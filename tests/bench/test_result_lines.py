"""The file of all results of a run: tolerant of a killed process, and the latest attempt at a case counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vitcache.bench.harness.result_lines import ResultLines, cases_of, read


def test_lines_are_on_disk_when_add_returns(tmp_path: Path) -> None:
    lines = ResultLines(tmp_path / "new/results.jsonl")
    assert read(lines.path) == []
    lines.add("probe", item="ring", value=53.5)
    assert lines.path.read_text() == '{"kind": "probe", "item": "ring", "value": 53.5}\n'
    ResultLines(lines.path).add("probe", item="ä\n", value=None)
    assert [line["item"] for line in read(lines.path)] == ["ring", "ä\n"]


def test_read_without_a_file_returns_no_line(tmp_path: Path) -> None:
    assert read(tmp_path / "results.jsonl") == []


@pytest.mark.parametrize("cut", [b'{"kind": "row", "va', b"{", "{'ä".encode()[:-1], b'{"kind": "row"}'])
def test_cut_last_line_is_left_out_and_the_next_writer_removes_it(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "results.jsonl"
    ResultLines(path).add("probe", item="first")
    path.write_bytes(path.read_bytes() + cut)
    assert [line["item"] for line in read(path)] == ["first"]
    ResultLines(path).add("probe", item="second")
    assert [line["item"] for line in read(path)] == ["first", "second"]


def test_file_with_only_a_cut_line_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"kind": ')
    assert read(path) == []
    ResultLines(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("text", "message"),
    [("{\n", ":1 is not JSON"), ('{"kind": "run"}\n[]\n', ":2 has no kind"), ("{}\n", ":1 has no kind")],
)
def test_broken_line_that_is_not_the_last_one_is_refused_by_its_number(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_cases_have_the_rows_of_their_latest_attempt_in_the_order_of_the_bench(tmp_path: Path) -> None:
    def case(name: str, *rows: int, state: str | None = "finished") -> list[dict[str, object]]:
        number = {"a": 1, "b": 2}[name]
        begun = {
            "kind": "case",
            "bench": "ring",
            "case": name,
            "state": "begun",
            "number": number,
            "count": 2,
        }
        lines = [begun, *({"kind": "row", "bench": "ring", "value": row} for row in rows)]
        return lines if state is None else [*lines, {**begun, "state": state}]

    lines = [
        *case("a", 0, state="failed"),
        *case("b", 3, state="failed"),
        {"kind": "test", "test": "other"},
        *case("b", 4, state=None),
        *case("a", 1, 2),
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    a, b = cases_of(read(path))["ring"]
    assert (a.name, a.state, a.rows) == (
        *("a", "finished"),
        [{"bench": "ring", "value": 1}, {"bench": "ring", "value": 2}],
    )
    assert (b.name, b.state, b.rows, b.count) == ("b", "begun", [{"bench": "ring", "value": 4}], 2)
