"""Writes the tables of docs/changes.md from the list of changes that the tests run: `make changes`.

The list is `CHANGES` of tests/support/model_changes; tests/adapters/changes runs each of its changes. A table
is the text between the lines `<!-- changes: NAME -->` and `<!-- end -->`, and NAME one of `TABLES`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "changes.md"
TABLE = re.compile(r"(<!-- changes: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)

if str(Path(__file__).parent) not in sys.path:  # PYTHONSAFEPATH leaves it out
    sys.path.append(str(Path(__file__).parent))
from model_changes import AT_ONCE, BY_CALL, BYPASSED, CHANGES, KEPT, NAMED, REFUSED, Change  # noqa: E402

# The kinds of changes of each table, and the heads of its columns.
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "noticed": ((AT_ONCE, NAMED), ("change", "tested", "counted as", "switching back")),
    "unseen": ((BY_CALL,), ("change", "tested", "`fingerprint_calls`")),
    "uncached": ((BYPASSED, REFUSED), ("call or change", "tested", "effect")),
    "kept": ((KEPT,), ("change", "tested")),
}


def render(table: str, changes: Iterable[Change] = CHANGES.values()) -> str:
    """Return the lines of a table. Changes of one row of the list are one line, if they are noticed alike."""
    kinds, head = TABLES[table]
    rows: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        if change.noticed in kinds:
            rows.setdefault((change.row, _last_cell(change)), []).append(change)
    lines = ["", _line(head), _line(["---"] * len(head))]
    for (row, last), found in rows.items():
        middle = ["; ".join(dict.fromkeys(change.kind for change in found))] if table == "noticed" else []
        names = "; ".join(change.name for change in found)
        lines.append(_line([row, names, *middle, last][: len(head)]))
    return "\n".join([*lines, ""])


def _last_cell(change: Change) -> str:
    if change.noticed == BY_CALL:
        return "finds it" if change.in_bytes else "no"
    return {NAMED: "finds earlier entries", AT_ONCE: "encodes again"}.get(change.noticed, change.noticed)


def fill(text: str) -> str:
    """Return the text of the page with new tables."""
    return TABLE.sub(lambda match: match[1] + render(match[2]), text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
