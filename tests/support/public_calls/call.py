"""The type of a call of the table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

Call: TypeAlias = tuple[Callable[..., Any], dict[str, Any]]
"""A callable and its valid arguments by name."""

Valid: TypeAlias = Callable[[ExitStack], Call]
"""Makes a call, whose objects the stack closes."""
