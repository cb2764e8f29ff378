"""The hash function of keys: BLAKE3, or SHA-256 if the package `blake3` is not installed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

ALGORITHM = "sha256"
# By algorithm: returns a hasher that runs in the calling thread alone. It may get the first bytes.
_HASHERS: dict[str, Callable[..., Any]] = {"sha256": hashlib.sha256}
with suppress(ImportError):
    from blake3 import blake3

    ALGORITHM = "blake3"
    _HASHERS[ALGORITHM] = blake3

# BLAKE3 starts new threads for each hasher. Below this size, starting them takes as long as hashing.
THREADED_BYTES = 1 << 20


def digest_of(data: bytes) -> bytes:
    """Return the hash of `data`, 32 bytes."""
    return bytes(_HASHERS[ALGORITHM](data).digest())


def new_hasher() -> Any:
    """Return a hasher with `update` and `digest`, which runs in the calling thread alone."""
    return _HASHERS[ALGORITHM]()


def digests_of(contents: Iterable[Iterable[Any]], num_threads: int = 1) -> list[bytes]:
    """Return the hash of each of `contents`, 32 bytes. A content is given as blocks: contiguous buffers.

    One hasher computes all of them, so BLAKE3 starts its threads only once.
    """
    hasher = _HASHERS[ALGORITHM]() if num_threads == 1 else _threaded_hasher(num_threads)
    reset = getattr(hasher, "reset", None)  # hashers of hashlib lack this method
    digests: list[bytes] = []
    for blocks in contents:
        for block in blocks:
            hasher.update(block)
        digests.append(hasher.digest())
        if reset is None:
            hasher = _HASHERS[ALGORITHM]()
        else:
            reset()
    return digests


def _threaded_hasher(num_threads: int) -> Any:
    """Return a hasher with this number of threads; with one thread if they do not start, or for SHA-256."""
    new = _HASHERS[ALGORITHM]
    if ALGORITHM != "blake3":
        return new()
    try:
        return new(max_threads=num_threads)
    except BaseException as error:
        # BLAKE3 starts its threads here. If one cannot be started, its Rust code panics, and the exception
        # of a panic is not an Exception and cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        return new()
