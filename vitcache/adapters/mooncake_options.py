"""The options by which an engine's plug-in gets a `MooncakeTier`: checks that name the option."""

from __future__ import annotations

from typing import Any

from vitcache.arguments import to_factor
from vitcache.tiers.mooncake_address import host_and_port

DEFAULT_WORTH = 0.5  # that of `MooncakeTier`


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
    >>> to_address("mooncake", "10.0.0.7:50051")
    '10.0.0.7:50051'
    """
    host_and_port(name, value)
    return str(value)


def to_worth(name: str, value: Any) -> float | None:
    """Return `Tier.worth` of the tier: a number above 0, or None, by which every entry is worth a transfer.

    Raises as `to_factor`.
    """
    return None if value is None else to_factor(name, value)
