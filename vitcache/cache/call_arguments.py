"""Checks of the arguments of an `EmbeddingCache`'s calls, before the call changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from vitcache.arguments import to_int, to_ms
from vitcache.keys.content import KEY_BYTES, check_key
from vitcache.tiers.names import tenant_digest

# No entry has this number of rows, and no epoch has this number.
MOST_ROWS = 1 << 60

TIERS = ("device", "host", "both")

# Measured: a Qwen3-VL-8B on an H100 encodes a 1280x720 image, 880 rows, in 27 ms.
MS_PER_ROW = 27 / 880


def check_keys(keys: Sequence[bytes]) -> list[bytes]:
    """Return the keys as a list. Raises as `EmbeddingCache.get_many`."""
    if not isinstance(keys, list | tuple):
        raise TypeError(f"keys must be a list of bytes, got {type(keys).__name__}")
    for key in keys:
        if type(key) is not bytes or len(key) != KEY_BYTES:
            check_key(key)
    return list(keys)


def check_num_rows(num_rows: int | Sequence[int | None], num_keys: int) -> list[int]:
    """Return one number of rows per key; -1 stands for any number. Raises as `EmbeddingCache.get_many`."""
    return [-1 if number is None else to_rows(number) for number in _per_key("num_rows", num_rows, num_keys)]


def check_row_widths(row_width: int | Sequence[int | None], num_keys: int, full_width: int) -> list[int]:
    """Return one row width per key; -1 stands for any width. Raises as `EmbeddingCache.get_many`."""
    widths = _per_key("row_width", row_width, num_keys)
    return [-1 if width is None else to_row_width("row_width", width, full_width) for width in widths]


def to_rows(num_rows: int) -> int:
    """Return a number of rows that native code can add up. Raises as `to_int`; a larger number is cut."""
    return min(to_int("num_rows", num_rows, 0), MOST_ROWS)


def to_row_width(name: str, width: int | None, full_width: int) -> int:
    """Return a width that rows of a cache can have; None stands for the cache's `row_width`.

    Raises
    ------
    ValueError
        If `width` is less than 1, or does not divide `full_width`.
    TypeError
        If `width` is not an int.
    """
    if width is None:
        return full_width
    width = to_int(name, width, 1)
    if full_width % width:
        raise ValueError(f"{name} is {width}, it must divide the cache's row_width, which is {full_width}")
    return width


def to_cost(encode_ms: float | None, num_rows: int) -> float:
    """Return the encode time in milliseconds of an entry. None: an estimate. Raises as `to_ms`."""
    return _estimated_ms(num_rows) if encode_ms is None else to_ms("encode_ms", encode_ms)


@lru_cache(maxsize=4096)
def _estimated_ms(num_rows: int) -> float:
    # Memoised, so that entries of equal length share one float.
    return num_rows * MS_PER_ROW


def check_tenant(tenant: str) -> None:
    """Raise TypeError if the name of a tenant is not a str."""
    if not isinstance(tenant, str):
        raise TypeError(f"tenant must be a str, got {type(tenant).__name__}")


@lru_cache(maxsize=4096)
def tenant_label(tenant: str) -> bytes:
    """Return the digest that labels the entries of a tenant, 32 bytes."""
    return tenant_digest(tenant)


def check_tier(tier: str, has_host_tier: bool) -> None:
    """Check the name of the tiers that `EmbeddingCache.put` writes. Raises as `put`."""
    if not isinstance(tier, str):
        raise TypeError(f"tier must be a str, got {type(tier).__name__}")
    if tier not in TIERS:
        raise ValueError(f"tier is {tier!r}, it must be one of {', '.join(map(repr, TIERS))}")
    if tier != "device" and not has_host_tier:
        raise ValueError(f"tier is {tier!r}, but the cache has no host tier: host_bytes is 0")


def check_discard_tier(tier: str) -> None:
    """Check the name of the tier that `EmbeddingCache.discard` drops rows from. Raises as `discard`."""
    if not isinstance(tier, str):
        raise TypeError(f"tier must be a str or None, got {type(tier).__name__}")
    if tier != "host":
        raise ValueError(f"tier is {tier!r}, it must be 'host' or None")


def _per_key(name: str, value: int | Sequence[int | None], num_keys: int) -> Sequence[int | None]:
    if not isinstance(value, Sequence):
        return [value] * num_keys
    if len(value) != num_keys:
        raise ValueError(f"{name} must have one number per key: expected {num_keys}, got {len(value)}")
    return value
