"""`replace_file`: writes a file of results whole, or leaves the earlier file as it is."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any


def replace_file(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file in the folder of `path`, flush it to the disk, and rename it.

    A reader finds the earlier file or the new one, also after a full disk, an interrupt or a loss of power.
    If the write fails, the temporary file is removed. A symbolic link stays a link, its target is replaced. A
    target that is not a regular file, such as ``/dev/stdout``, is written directly.

    Parameters
    ----------
    path
        The file to write. Its folder exists.
    content
        All bytes of the file; a str is written in UTF-8.

    Raises
    ------
    OSError
        If the folder cannot be written, or the disk is full. The error's `filename` is `path`.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    try:
        if mode is not None and not stat.S_ISREG(mode):
            with path.open("wb", buffering=0) as file:
                _write(file.fileno(), data)
        else:
            _replace(Path(os.path.realpath(path)), data, mode)
    except OSError as error:
        # The message names the file that the caller asked for.
        raise type(error)(error.errno, error.strerror, str(path)) from None


def save_figure(figure: Any, path: Path, form: str | None = None) -> None:
    """Write a figure of matplotlib with `replace_file`. `form` None: the suffix of `path`."""
    drawn = BytesIO()
    figure.savefig(drawn, format=form or path.suffix.removeprefix("."))
    replace_file(path, drawn.getvalue())


def _replace(path: Path, data: bytes, mode: int | None) -> None:
    aside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        # As for `open`, the umask decides on the permissions of a new file.
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if mode is not None:
                os.fchmod(descriptor, stat.S_IMODE(mode))
            _write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    # The new name is flushed, too. Some file systems cannot flush a folder.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write(descriptor: int, data: bytes) -> None:
    """Write all bytes; a write to an almost full disk takes only a part of them."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
