"""All results of a run of `make gpu` in one JSON-lines file, which each process of the run appends to.

Each line is an object, and its ``kind`` says which object:

======== ===========================================================================================
run      one call of `make gpu`: the machine and the commit
part     the end of one part: its outcome and its seconds
case     a case of a bench begins, or ends: ``state`` is begun, finished or failed
row      one result of the case that has begun, with the fields of `record.FIELDS`
test     the outcome of one test
probe    one finding of `vitcache.bench.probe`
======== ===========================================================================================

A process that is killed leaves at most one cut line, the last one. Readers ignore that line, and the next
writer removes it. This module imports no other package: `make gpu` reads the file before it has built one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class ResultLines:
    """Appends lines to one file. A line is on disk when `add` returns.

    Processes may append to the same file one after the other. A cut last line is removed first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            text = file.read()
            whole = text.rfind(b"\n") + 1
            if whole < len(text):
                file.truncate(whole)

    def add(self, kind: str, **fields: Any) -> None:
        """Append one line."""
        text = json.dumps({"kind": kind, **fields}) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(text.encode())


def read(path: Path) -> list[Line]:
    """Return all lines of the file; without a file, no line. A cut last line is left out.

    Raises
    ------
    ValueError
        If another line is not an object with a ``kind``; if a line of a case or a row lacks a field that
        `cases_of` reads, or its case has not begun. The message names the file and the line.
    """
    lines: list[Line] = []
    begun: set[str] = set()  # benches
    # Bytes are split, because a killed process may leave a part of a character.
    *texts, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:  # RecursionError: too many nested lists
            raise ValueError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(line, dict) or "kind" not in line:
            raise ValueError(f"{path}:{number} has no kind, expected an object with a kind: {text[:80]!r}")
        if line["kind"] in ("case", "row"):
            fault = _fault_of(line, begun)
            if fault:
                raise ValueError(f"{path}:{number} {fault}: {text[:80]!r}")
            begun.add(line["bench"])
        lines.append(line)
    return lines


def _fault_of(line: Line, begun: set[str]) -> str:
    """Say why a line of a case or a row is wrong; empty if it is right."""
    bench = line.get("bench")
    # The name becomes a part of a file's name.
    if not isinstance(bench, str) or re.fullmatch("[A-Za-z0-9_]+", bench) is None:
        return "has no bench, expected a name of letters and digits"
    if line["kind"] == "row":
        return "" if bench in begun else "is a row of a case that has not begun"
    if not isinstance(line.get("case"), str) or line.get("state") not in ("begun", "finished", "failed"):
        return "expected a case and its state: begun, finished or failed"
    if line["state"] == "begun":
        are_ints = type(line.get("number")) is int and type(line.get("count")) is int
        return "" if are_ints else "expected a number and a count of the case"
    return "" if bench in begun else "ends a case that has not begun"


class Case:
    """The latest attempt at one case of a bench: its rows, and how it ended."""

    def __init__(self, bench: str, name: str, number: int, count: int) -> None:
        self.bench, self.name = bench, name
        self.number, self.count = number, count  # the first case is number 1 of `count` cases of the bench
        self.state = "begun"
        self.rows: list[Line] = []


def cases_of(lines: list[Line]) -> dict[str, list[Case]]:
    """Return the latest attempt at each case, by bench, in the order of the bench.

    So a case that a resumed run repeats keeps its place in tables and plots. The rows of an earlier attempt
    at the same case are left out.
    """
    found: dict[str, dict[str, Case]] = {}
    current: dict[str, Case] = {}  # by bench
    for line in lines:
        if line["kind"] == "case":
            bench, name = line["bench"], line["case"]
            if line["state"] == "begun":
                made = Case(bench, name, line["number"], line["count"])
                current[bench] = found.setdefault(bench, {})[name] = made
            else:
                current[bench].state = line["state"]
        elif line["kind"] == "row":
            row = {field: value for field, value in line.items() if field != "kind"}
            current[line["bench"]].rows.append(row)
    return {bench: sorted(cases.values(), key=lambda case: case.number) for bench, cases in found.items()}
