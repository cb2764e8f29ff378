"""Reads a user's trace: a file with one JSON object per line, in the order of the image requests.

``{"key": "cat.jpg", "tokens": 405, "encode_ms": 27.1}``: `key` is a string that names the image, `tokens` the
number of rows of its embedding, and `encode_ms` the milliseconds of its encode, which is optional. Other
fields and empty lines are ignored.

A trace is a stranger's file: lines, numbers and the number of lines have limits, so that reading and
simulating it takes bounded time and memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vitcache.bench.traffic.traces import Access, image

MAX_LINE_BYTES = 1 << 16
MAX_LINES = 10_000_000
MAX_TOKENS = 1 << 24  # an hour of video has 1 << 20
MAX_MS = 86_400_000  # a day


def load_trace(path: Path) -> list[Access]:
    """Read a trace.

    Raises
    ------
    ValueError
        If a line does not have the format above or exceeds a limit of this module, if two lines with one key
        differ in `tokens`, or if the file is empty. The message names the file, the line and the reason.
    OSError
        If the file cannot be read.
    """
    trace: list[Access] = []
    first_of: dict[str, tuple[int, int]] = {}  # tokens and line number of each key's first line
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file), 1):
                if number > MAX_LINES:
                    raise ValueError(f"expected at most {MAX_LINES} lines")
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"expected at most {MAX_LINE_BYTES} bytes in a line")
                if not line.strip():
                    continue
                key, tokens, encode_ms = _read(line)
                expected, earlier = first_of.setdefault(key, (tokens, number))
                if tokens != expected:
                    text = f"{_shorten(key)} has {tokens} tokens, expected {expected} as in line {earlier}"
                    raise ValueError(text)
                trace.append(image(key, tokens, encode_ms))
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from None
    if not trace:
        raise ValueError(f"{path}: expected at least one line, got none")
    return trace


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines; of a line that is too long, one byte more than a line may have."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line


def _read(line: bytes) -> tuple[str, int, float | None]:
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError("not JSON: too many nested lists or objects") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object, got {_shorten(fields)}")
    if not {"key", "tokens"} <= fields.keys():
        raise ValueError(f"expected the fields 'key' and 'tokens', got {_join(fields)}")
    key, tokens, encode_ms = fields["key"], fields["tokens"], fields.get("encode_ms")
    if not isinstance(key, str):
        raise ValueError(f"key must be a string, got {_shorten(key)}")
    if not key.isascii() and any("\ud800" <= character <= "\udfff" for character in key):
        raise ValueError(f"key must be a string without surrogates, got {_shorten(key)}")
    if type(tokens) is not int or not 0 <= tokens <= MAX_TOKENS:
        raise ValueError(f"tokens must be an integer from 0 to {MAX_TOKENS}, got {_shorten(tokens)}")
    if encode_ms is not None and (type(encode_ms) not in (int, float) or not 0 <= encode_ms <= MAX_MS):
        raise ValueError(f"encode_ms must be a number from 0 to {MAX_MS}, got {_shorten(encode_ms)}")
    return key, tokens, encode_ms


def _shorten(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):  # ValueError: Python refuses to print an int of 4,300 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _join(names: Iterable[str]) -> str:
    text = ", ".join(map(repr, names)) or "no fields"
    return text if len(text) <= 80 else f"{text[:77]}..."
