"""`load_trace` reads a user's trace, and names the line and the reason if a line is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitcache.bench.traffic.trace_file import load_trace
from vitcache.bench.traffic.traces import encode_ms


def write(directory: Path, *lines: str) -> Path:
    path = directory / "trace.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_load_trace_returns_one_access_per_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"key": "a", "tokens": 405, "encode_ms": 12}',
        "",
        '{"key": "b", "tokens": 2040, "user": 3}',
        '{"key": "a", "tokens": 405, "encode_ms": 14.5}',
    )
    first, second, third = load_trace(path)
    assert (first.num_rows, first.encode_ms) == (405, 12)
    assert (second.num_rows, second.encode_ms) == (2040, encode_ms(2040))
    assert third.encode_ms == 14.5
    assert first.key == third.key != second.key
    assert len(first.key) == 32


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("\udcff", "not JSON"),
        ("[1, 2]", r"expected an object, got \[1, 2\]"),
        ('{"tokens": 3, "id": 1}', "expected the fields 'key' and 'tokens', got 'tokens', 'id'"),
        ("{}", "expected the fields 'key' and 'tokens', got no fields"),
        ('{"key": 7, "tokens": 3}', "key must be a string, got 7"),
        ('{"key": "b", "tokens": 3.5}', "tokens must be an integer of at least 0, got 3.5"),
        ('{"key": "b", "tokens": -1}', "tokens must be an integer of at least 0, got -1"),
        ('{"key": "b", "tokens": true}', "tokens must be an integer of at least 0, got true"),
        (
            '{"key": "b", "tokens": 3, "encode_ms": "fast"}',
            'encode_ms must be a finite number of at least 0, got "fast"',
        ),
        (
            '{"key": "b", "tokens": 3, "encode_ms": NaN}',
            "encode_ms must be a finite number of at least 0, got NaN",
        ),
        ('{"key": "a", "tokens": 6}', "'a' has 6 tokens, expected 5 as in line 1"),
    ],
)
def test_load_trace_wrong_line_raises_with_its_number_and_the_reason(
    tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'{"key": "a", "tokens": 5}\n\n' + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ValueError, match=rf"trace\.jsonl, line 3: {reason}"):
        load_trace(path)


def test_load_trace_file_without_lines_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one line, got none"):
        load_trace(write(tmp_path, "", ""))
