"""Checks of the arguments of an `EmbeddingCache` that concern its tiers below the host tier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitcache.arguments import shown, to_factor, to_timeout
from vitcache.cache.call_arguments import check_keys, check_num_rows, check_row_widths
from vitcache.tiers.protocol import Tier
from vitcache.tiers.write_back import WriteBack

_METHODS = (
    *(
        "open",
        "register",
        "exists",
        "fetch",
        "store",
        "claim",
        "erase",
        "generation",
        "revoke",
        "metrics",
        "close",
    ),
)


def check_tiers(tiers: Sequence[Tier], has_host_tier: bool) -> list[Tier]:
    """Return the tiers as a list. Raises as the constructor of `EmbeddingCache`."""
    if not isinstance(tiers, list | tuple):
        raise TypeError(f"tiers must be a list of tiers, got {type(tiers).__name__}")
    names = ["device", "host"]
    for tier in tiers:
        missing = [name for name in _METHODS if not callable(getattr(tier, name, None))]
        if missing or isinstance(tier, type):
            raise TypeError(
                f"tiers contains {shown(tier)} of type {type(tier).__name__}, which is not a tier"
                + (f": it has no method {missing[0]}" if missing else "")
            )
        name = getattr(tier, "name", None)
        if not isinstance(name, str) or not isinstance(getattr(tier, "capacity_bytes", None), int):
            raise TypeError(f"a tier of type {type(tier).__name__} has no str `name` or int `capacity_bytes`")
        if not hasattr(tier, "worth"):
            raise TypeError(f"a tier of type {type(tier).__name__} has no `worth`: None, or a number above 0")
        if tier.worth is not None:
            to_factor(f"worth of the tier {name!r}", tier.worth)
        if name in names:
            raise ValueError(
                f"tiers contains two tiers or more with the name {name!r}, or it is a tier above"
            )
        names.append(name)
    if tiers and not has_host_tier:
        raise ValueError("tiers need a host tier, but host_bytes is 0")
    return list(tiers)


def check_weights_name(name: str | bytes | None) -> None:
    """Check the name of weights. Raises as the constructor of `EmbeddingCache`."""
    if name is not None and not isinstance(name, str | bytes):
        raise TypeError(f"weights_name must be a str, bytes or None, got {type(name).__name__}")
    if name is not None and not name:
        raise ValueError(f"weights_name is {name!r}, it must have at least 1 character")


def check_write_back(write_back: WriteBack) -> None:
    """Raise TypeError if `write_back` is not a `WriteBack`."""
    if not isinstance(write_back, WriteBack):
        raise TypeError(f"write_back must be a WriteBack, got {type(write_back).__name__}")


def to_seconds(name: str, value: Any) -> float:
    """Return a number of seconds as a float. Raises as `to_timeout`, and TypeError for None."""
    seconds = to_timeout(name, value)
    if seconds is None:
        raise TypeError(f"{name} must be a number of seconds, got None")
    return seconds


def check_wanted(
    keys: Sequence[bytes],
    num_rows: int | Sequence[int],
    row_width: int | Sequence[int | None] | None,
    full_width: int,
) -> tuple[list[bytes], list[int], list[int]]:
    """Return keys, numbers of rows and row widths, one per key. Raises as `EmbeddingCache.begin_fetch`."""
    keys = check_keys(keys)
    if num_rows is None or (isinstance(num_rows, list | tuple) and None in num_rows):
        raise TypeError("num_rows must be an int, or one int per key, got None")
    counts = check_num_rows(num_rows, len(keys))
    if row_width is None:
        return keys, counts, [full_width] * len(keys)
    return keys, counts, check_row_widths(row_width, len(keys), full_width)
