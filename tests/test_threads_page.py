"""docs/threads.md: each cell of its table is a test, and the table has the lines of the tests."""

from __future__ import annotations

import pytest
import thread_page
from thread_table import PLACES, ROWS, Row, observe


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name.replace("`", ""))
def test_use_from_a_place_works_or_raises_as_the_page_says(row: Row, place: str) -> None:
    for package in row.needs:
        pytest.importorskip(package)
    assert observe(row, place) == row.expected(place)


def test_table_of_the_page_is_that_of_the_tests() -> None:
    text = thread_page.PAGE.read_text()
    assert thread_page.fill(text) == text, "run python tests/support/thread_page.py"
    assert all(row.name in text for row in ROWS)
