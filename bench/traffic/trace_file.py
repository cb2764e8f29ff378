"""Reads a user's trace: a file with one JSON object per line, in the order of the image requests.

``{"key": "cat.jpg", "tokens": 405, "encode_ms": 27.1}``: `key` is a string that names the image, `tokens` the
number of rows of its embedding, and `encode_ms` the milliseconds of its encode, which is optional. Other
fields and empty lines are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitcache.bench.traffic.traces import Access, image


def load_trace(path: Path) -> list[Access]:
    """Read a trace.

    Raises
    ------
    ValueError
        If a line does not have the format above, if two lines with one key differ in `tokens`, or if the file
        is empty. The message names the file, the line and the reason.
    OSError
        If the file cannot be read.
    """
    trace: list[Access] = []
    first_of: dict[str, tuple[int, int]] = {}  # tokens and line number of each key's first line
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                key, tokens, encode_ms = _read(line)
                expected, earlier = first_of.setdefault(key, (tokens, number))
                if tokens != expected:
                    raise ValueError(f"{key!r} has {tokens} tokens, expected {expected} as in line {earlier}")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            trace.append(image(key, tokens, encode_ms))
    if not trace:
        raise ValueError(f"{path}: expected at least one line, got none")
    return trace


def _read(line: bytes) -> tuple[str, int, float | None]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected an object, got {_shorten(fields)}")
    if not {"key", "tokens"} <= fields.keys():
        raise ValueError(f"expected the fields 'key' and 'tokens', got {_join(fields)}")
    key, tokens, encode_ms = fields["key"], fields["tokens"], fields.get("encode_ms")
    if not isinstance(key, str):
        raise ValueError(f"key must be a string, got {_shorten(key)}")
    if type(tokens) is not int or tokens < 0:
        raise ValueError(f"tokens must be an integer of at least 0, got {_shorten(tokens)}")
    if encode_ms is not None and (type(encode_ms) not in (int, float) or not 0 <= encode_ms < math.inf):
        raise ValueError(f"encode_ms must be a finite number of at least 0, got {_shorten(encode_ms)}")
    return key, tokens, encode_ms


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _join(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no fields"
