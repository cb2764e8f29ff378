"""Folders of a disk tier, opened one below the other, so that no symbolic link leads out of the root."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# The place does not exist, is not a folder or a file, or is a symbolic link.
MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
# The same, or the place may not be read.
ABSENT = MISSING | {errno.EACCES, errno.EPERM, errno.ESTALE}
# A write is refused for a reason that the next write probably meets, too: the tier stores nothing.
REFUSED = ABSENT | {
    errno.EAGAIN,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTEMPTY,
}


@contextmanager
def open_folder(name: str, parent: int | None = None, *, make: bool = False) -> Iterator[int]:
    """Open a folder, and close it at the end of the context.

    Parameters
    ----------
    parent
        Descriptor of the folder that contains it, which may then not be a symbolic link. None: `name` is the
        path of a root.
    make
        Whether to make a missing folder, which only its owner may read.

    Raises
    ------
    OSError
        As `os.open`; if the folder is a symbolic link or not a folder.
    """
    flags = _FLAGS if parent is None else _FLAGS | os.O_NOFOLLOW
    try:
        fd = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
        make_folder(name, parent)
        fd = os.open(name, flags, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def make_folder(name: str, parent: int | None = None) -> None:
    """Make a folder that only its owner may read, unless it exists. A root is made with its parents."""
    try:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileNotFoundError:
            if parent is not None:
                raise
            os.makedirs(os.path.dirname(name), exist_ok=True)
            os.mkdir(name, 0o700)
    except FileExistsError:
        return


def check_root(path: str) -> None:
    """Raise unless a root belongs to this process, and only its owner may write it.

    Raises
    ------
    NotADirectoryError
        If the path is not a folder.
    PermissionError
        If the folder has another owner than the effective user, or if its group or everybody may write it.
        A user who can write the folder decides about the rows that this process reads.
    """
    state = os.stat(path)
    if not stat.S_ISDIR(state.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    user, mode = os.geteuid(), stat.S_IMODE(state.st_mode)
    if state.st_uid != user or mode & 0o022:
        raise PermissionError(
            errno.EPERM,
            f"the folder of a disk tier belongs to user {state.st_uid} and has mode {mode:03o}; it must "
            f"belong to user {user}, and neither its group nor all users may write it",
            path,
        )


def remove(name: str, folder: int) -> bool:
    """Remove a file, a symbolic link or an empty folder, and return whether it was there and is removed.

    Raises
    ------
    OSError
        If a file is there and cannot be removed.
    """
    try:
        os.unlink(name, dir_fd=folder)
        return True
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=folder)
            return True
        except OSError:
            return False
