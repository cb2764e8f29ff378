"""`load_trace` reads a user's trace, and names the line and the reason if a line is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitcache.bench.traffic import trace_file
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
        ("[" * 60_000, "not JSON: too many nested lists or objects"),
        ('{"key": "b", "tokens": ' + "[" * 700 + "]" * 700 + "}", "tokens must be an integer from 0 to"),
        ('{"key": "b", "tokens": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        (" " * (1 << 16), "expected at most 65536 bytes in a line"),
        ("[1, 2]", r"expected an object, got \[1, 2\]"),
        ('{"tokens": 3, "id": 1}', "expected the fields 'key' and 'tokens', got 'tokens', 'id'"),
        ('{"tokens": 3, "' + "i" * 5000 + '": 1}', "expected the fields .*, got 'tokens', 'i{60,66}[.]{3}$"),
        ("{}", "expected the fields 'key' and 'tokens', got no fields"),
        ('{"key": 7, "tokens": 3}', "key must be a string, got 7"),
        ('{"key": "\\ud800", "tokens": 3}', "key must be a string without surrogates, got .*ud800"),
        ('{"key": "b", "tokens": 3.5}', "tokens must be an integer from 0 to 16777216, got 3.5"),
        ('{"key": "b", "tokens": -1}', "tokens must be an integer from 0 to 16777216, got -1"),
        ('{"key": "b", "tokens": true}', "tokens must be an integer from 0 to 16777216, got true"),
        (
            '{"key": "b", "tokens": 9000000000}',
            "tokens must be an integer from 0 to 16777216, got 9000000000",
        ),
        (
            '{"key": "b", "tokens": ' + "9" * 400 + "}",
            "tokens must be an integer from 0 to 16777216, got 9{37}",
        ),
        (
            '{"key": "b", "tokens": 3, "encode_ms": "fast"}',
            'encode_ms must be a number from 0 to 86400000, got "fast"',
        ),
        (
            '{"key": "b", "tokens": 3, "encode_ms": NaN}',
            "encode_ms must be a number from 0 to 86400000, got NaN",
        ),
        (
            '{"key": "b", "tokens": 3, "encode_ms": 1e308}',
            r"encode_ms must be a number from 0 to 86400000, got 1e\+308",
        ),
        (
            '{"key": "b", "tokens": 3, "encode_ms": ' + "9" * 400 + "}",
            "encode_ms must be a number from 0 to 86400000, got 9{37}",
        ),
        ('{"key": "a", "tokens": 6}', '"a" has 6 tokens, expected 5 as in line 1'),
    ],
    ids=lambda value: value[:40],
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


def test_load_trace_endless_line_raises_in_bounded_memory() -> None:
    """`/dev/zero` has one line without an end; as bytes it is not blank."""
    with pytest.raises(ValueError, match="/dev/zero, line 1: expected at most 65536 bytes in a line"):
        load_trace(Path("/dev/zero"))


def test_load_trace_more_lines_than_the_limit_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "MAX_LINES", 3)
    path = write(tmp_path, *['{"key": "a", "tokens": 5}'] * 4)
    with pytest.raises(ValueError, match=r"trace\.jsonl, line 4: expected at most 3 lines"):
        load_trace(path)
