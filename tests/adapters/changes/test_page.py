"""docs/changes.md has exactly the changes that are tested."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

pytest.importorskip("transformers")

import changes_table
from changes_table import PAGE, TABLES, fill, render
from model_changes import AT_ONCE, CHANGES, Change

MOST_LINES = 150


def first_cells(text: str) -> list[str]:
    """The first cells of the rows of the tables that are written from the list."""
    return [
        line.split(" | ")[0].removeprefix("| ")
        for table in changes_table.TABLE.finditer(text)
        for line in table[0].splitlines()[4:]
        if line.startswith("| ")
    ]


def test_tables_of_the_page_are_those_of_the_list() -> None:
    text = PAGE.read_text()
    assert re.findall(r"<!-- changes: (\w+) -->", text) == list(TABLES)
    assert fill(text) == text, "run make changes"


def test_page_has_a_row_for_each_change_and_no_other_one() -> None:
    text = PAGE.read_text()
    rows = first_cells(text)
    assert {change.row for change in CHANGES.values()} == set(rows)
    assert all(change.name in text for change in CHANGES.values())


def test_page_is_short() -> None:
    table_of_bench = re.compile(r"<!-- table: .*?<!-- end -->", re.DOTALL)
    assert len(table_of_bench.sub("", PAGE.read_text()).splitlines()) <= MOST_LINES


def test_every_module_of_the_list_registers_changes() -> None:
    package = PAGE.parents[1] / "tests" / "support" / "model_changes"
    pattern = r"^@change\(|^ +change\("
    modules = {path.stem for path in package.glob("*.py") if re.search(pattern, path.read_text(), re.M)}
    used = {change.steps.__module__.removeprefix("model_changes.") for change in CHANGES.values()}
    assert modules == used


def test_render_adds_a_row_for_a_change_that_is_added_to_the_list() -> None:
    first, *_ = (change for change in CHANGES.values() if change.noticed == AT_ONCE)
    added: Change = replace(first, row="a new row", name="a new name")
    assert "| a new row | a new name |" in render("noticed", [*CHANGES.values(), added])
    assert "| a new row |" not in render("noticed")
