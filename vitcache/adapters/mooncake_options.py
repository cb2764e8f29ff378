"""The options by which an engine's plug-in gets a `MooncakeTier`, under the names that messages use."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

from vitcache.arguments import shown

# The options, as both plug-ins name them.
ADDRESS, WORTH = "mooncake", "mooncake_worth"
DEFAULT_WORTH = 0.5
_ADDRESS = re.compile(r"(?:[^\s:\[\]/]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})")


def to_address(name: str, value: Any) -> str:
    """Return the address of a Mooncake master, ``"host:port"``. It is not looked up, and not connected to.

    Raises
    ------
    TypeError
        If `value` is not a str.
    ValueError
        If `value` has another form, or the port is not between 1 and 65535. The message names `name`.

    Examples
    --------
    >>> to_address("mooncake", "10.0.0.7:50051"), to_address("mooncake", "[::1]:50051")
    ('10.0.0.7:50051', '[::1]:50051')
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {shown(value)} of type {type(value).__name__}")
    found = _ADDRESS.fullmatch(value)
    if found is None or not 1 <= int(found[1]) <= 65535:
        raise ValueError(
            f"{name} is {shown(value)}, it must be the address of a Mooncake master, 'host:port', such as "
            "'10.0.0.7:50051'"
        )
    return value


def to_worth(name: str, value: Any) -> float | None:
    """Return `Tier.worth` of the tier: a number above 0, or None, by which every entry is worth a transfer.

    Raises
    ------
    TypeError
        If `value` is neither None nor a real number, or if it is a bool.
    ValueError
        If `value` is not positive and finite.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or null, got {shown(value)} of type {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(
            f"{name} is {shown(value)}, it must be above 0 and finite, or null: every entry is then fetched"
        )
    return float(value)
