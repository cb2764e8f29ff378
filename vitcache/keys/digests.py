"""The hash function of keys: BLAKE3, or SHA-256 if the package `blake3` is not installed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

ALGORITHM: str
try:
    from blake3 import blake3

    ALGORITHM = "blake3"
except ImportError:
    ALGORITHM = "sha256"

# BLAKE3 starts new threads for each hasher. Below this size, starting them takes as long as hashing.
THREADED_BYTES = 1 << 20


def digest_of(data: bytes) -> bytes:
    """Return the hash of `data`, 32 bytes."""
    hasher = _new_hasher(1)
    hasher.update(data)
    return bytes(hasher.digest())


def digests_of(contents: Iterable[Iterable[Any]], num_threads: int = 1) -> list[bytes]:
    """Return the hash of each of `contents`, 32 bytes. A content is given as blocks: contiguous buffers.

    One hasher computes all of them, so BLAKE3 starts its threads only once.
    """
    hasher = _new_hasher(num_threads)
    reset = getattr(hasher, "reset", None)  # hashers of hashlib lack this method
    digests: list[bytes] = []
    for blocks in contents:
        for block in blocks:
            hasher.update(block)
        digests.append(hasher.digest())
        if reset is None:
            hasher = _new_hasher(num_threads)
        else:
            reset()
    return digests


def _new_hasher(num_threads: int) -> Any:
    if ALGORITHM != "blake3":
        return hashlib.sha256()
    if num_threads == 1:
        return blake3()
    try:
        return blake3(max_threads=num_threads)
    except BaseException as error:
        # BLAKE3 starts its threads here. If one cannot be started, its Rust code panics, and the exception
        # of a panic is not an Exception and cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        return blake3()
