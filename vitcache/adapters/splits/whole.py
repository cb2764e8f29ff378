"""`split_as_whole`: the call is one item."""

from __future__ import annotations

from typing import Any


def split_as_whole(config: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Make one item of a call whose arguments do not tell its items apart, such as the frames of a video."""
    pixel_name, pixels = next(iter(arguments.items()))
    return [{pixel_name: pixels}]
