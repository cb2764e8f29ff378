"""A user's own trace: a file with one JSON object a line, in the order in which images were asked for.

``{"key": "cat.jpg", "tokens": 405, "encode_ms": 27.1}``: `key` is text that is the same for the same image,
`tokens` the rows of its embedding, and `encode_ms`, which may be left out, what encoding it takes. Other
fields and empty lines are passed over.
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
        If a line is not as above, or has another number of tokens than an earlier one with its key; the
        message names the file, the line and the reason. Also if there is no line.
    OSError
        If the file cannot be read.
    """
    trace: list[Access] = []
    first_of: dict[str, tuple[int, int]] = {}  # tokens, and the number of the line
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                key, tokens, encode_ms = _read(line)
                expected, earlier = first_of.setdefault(key, (tokens, number))
                if tokens != expected:
                    raise ValueError(f"{key!r} has {tokens} tokens, it had {expected} in line {earlier}")
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            trace.append(image(key, tokens, encode_ms))
    if not trace:
        raise ValueError(f"{path} has no line")
    return trace


def _read(line: bytes) -> tuple[str, int, float | None]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"an object is expected, not {_short(fields)}")
    missing = [name for name in ("key", "tokens") if name not in fields]
    if missing:
        raise ValueError(f"there is no {_list(missing)}, only {_list(fields)}")
    key, tokens, encode_ms = fields["key"], fields["tokens"], fields.get("encode_ms")
    if not isinstance(key, str):
        raise ValueError(f"key is {_short(key)}, it must be text")
    if type(tokens) is not int or tokens < 0:
        raise ValueError(f"tokens is {_short(tokens)}, it must be a whole number of at least 0")
    if encode_ms is not None and (type(encode_ms) not in (int, float) or not 0 <= encode_ms < math.inf):
        raise ValueError(f"encode_ms is {_short(encode_ms)}, it must be a finite number of at least 0")
    return key, tokens, encode_ms


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
