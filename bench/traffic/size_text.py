"""`size_text`: a number of bytes as people write it."""

from __future__ import annotations


def size_text(num_bytes: float) -> str:
    """Return a size with four digits and a unit of powers of 1024, such as ``"1.5 MiB"``."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} GiB"
