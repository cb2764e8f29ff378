"""The exception that tests plant."""

from __future__ import annotations

from typing import NoReturn


class Failure(Exception):
    """A planted failure. The package never raises it, so a test that catches it catches its own."""


def fail(*_: object, **__: object) -> NoReturn:
    """Raise `Failure`, whatever the arguments: the replacement for a function that must fail."""
    raise Failure
