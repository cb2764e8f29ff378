"""Checks of the arguments of tiers."""

from __future__ import annotations

from vitcache.tiers.protocol import Transfer


def check_parts(transfer: Transfer) -> None:
    """Raise ValueError unless the parts are contiguous bytes, together as many as the entry has."""
    num_bytes = 0
    for part in transfer.parts:
        if part.dtype.char != "B" or part.ndim != 1 or not part.flags.c_contiguous:
            raise ValueError(
                f"parts must be contiguous uint8 arrays of one dimension, got {part.dtype} of shape "
                f"{part.shape}"
            )
        num_bytes += part.size
    if num_bytes != transfer.name.num_bytes:
        raise ValueError(f"the parts have {num_bytes} bytes, the entry has {transfer.name.num_bytes}")
