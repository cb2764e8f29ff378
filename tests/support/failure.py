"""The exception that tests plant."""

from __future__ import annotations

from typing import NoReturn


class Failure(Exception):
    """A planted failure. The package never raises this type, so only a test can have planted it."""


def fail(*_: object, **__: object) -> NoReturn:
    """Raise `Failure` for any arguments. Tests replace a function that must fail with it."""
    raise Failure
