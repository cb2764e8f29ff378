"""Generations of names of weights: files whose sizes count, beside the entries and apart from the index.

`O_APPEND` makes each append of one byte atomic, so revocations of several processes all count.
"""

from __future__ import annotations

import errno
import os
import stat

from vitcache.tiers.folders import open_folder

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def read_generation(root: int, weights: bytes) -> int:
    """Return the generation of a name of weights; `root` is the descriptor of the tier's folder.

    Raises
    ------
    OSError
        If the file of this name is not a regular file: it may not be trusted.
    """
    try:
        with open_folder("generations", root) as folder:
            fd = os.open(weights.hex(), os.O_RDONLY | _FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return 0
    try:
        return _size(fd)
    finally:
        os.close(fd)


def begin_generation(root: int, weights: bytes) -> int:
    """Begin a new generation, durably, and return it."""
    with open_folder("generations", root, make=True) as folder:
        os.fsync(root)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS
        fd = os.open(weights.hex(), flags, 0o600, dir_fd=folder)
        try:
            _size(fd)
            os.write(fd, b"+")
            os.fsync(fd)
            os.fsync(folder)
            return _size(fd)
        finally:
            os.close(fd)


def _size(fd: int) -> int:
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "the file of a generation is not a regular file")
    return state.st_size
