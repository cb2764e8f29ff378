"""`EntryFiles`: one file for each entry. A file is complete or absent, and is checked whenever it is read.

A file is written under another name in the folder ``tmp`` and renamed. Its writer holds a lock on it until
then (`flock`), so that a file of a process that has ended is known and removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from vitcache.tiers.blocks import BlockBuffers, RowBlocks, pieces, transfer
from vitcache.tiers.folders import ABSENT, open_folder, remove
from vitcache.tiers.header import (
    BLOCK_BYTES,
    checksum_in,
    file_bytes,
    has_other_algorithm,
    header_of,
    place_of,
)
from vitcache.tiers.protocol import EntryName
from vitcache.tiers.row_sums import RowSum, RowSums

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECT: int = getattr(os, "O_DIRECT", 0)
ENTRIES, TEMPORARY = "entries", "tmp"


class Unreadable(Exception):
    """A file does not have the rows of its entry. `kind` says why, in few words."""

    def __init__(self, kind: str, *, is_damaged: bool = True) -> None:
        super().__init__(kind)
        self.kind, self.is_damaged = kind, is_damaged


class EntryFiles:
    """Reads and writes files of entries below an open root. One thread at a time calls its methods.

    Attributes
    ----------
    is_direct
        Whether aligned memory is read and written by direct I/O. False after the file system refused it.
    """

    def __init__(self, *, direct: bool) -> None:
        self.is_direct = direct and bool(_DIRECT)
        self._buffers = BlockBuffers()

    def read(
        self, entries: int, name: EntryName, parts: Sequence[np.ndarray], sums: RowSums
    ) -> Callable[[], None]:
        """Read the rows of an entry to `parts`, and begin their checksum.

        Returns a function that waits for the checksum, and raises Unreadable if it is not that of the header.

        Raises
        ------
        FileNotFoundError
            If the entry has no file.
        Unreadable
            If the file does not match the entry's name.
        """
        tenant, shard, file = place_of(name)
        try:
            with open_folder(tenant, entries) as tenant_folder, open_folder(shard, tenant_folder) as folder:
                fd = self._open(file, folder)
        except OSError as error:
            if error.errno in ABSENT:
                raise FileNotFoundError(error.errno, "the entry has no file that can be read") from None
            raise
        try:
            _check(fd, name)
            blocks = RowBlocks(parts, self._buffers)
            if not blocks.is_aligned and self.is_direct:
                _set_direct(fd, False)
            try:
                return self._read(fd, name, blocks, sums.begin())
            except OSError as error:
                if error.errno != errno.EINVAL or not self.is_direct:
                    raise
                self.is_direct = False
                _set_direct(fd, False)
                return self._read(fd, name, blocks, sums.begin())
        finally:
            os.close(fd)

    def _open(self, file: str, folder: int) -> int:
        flags = os.O_RDONLY | _FLAGS
        try:
            if not self.is_direct:
                return os.open(file, flags, dir_fd=folder)
            try:
                return os.open(file, flags | _DIRECT, dir_fd=folder)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            fd = os.open(file, flags, dir_fd=folder)
            if stat.S_ISREG(os.fstat(fd).st_mode):  # a folder refuses direct I/O, too
                self.is_direct = False
            return fd
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
                raise Unreadable("is not a regular file") from None
            raise

    def _read(self, fd: int, name: EntryName, blocks: RowBlocks, row_sum: RowSum) -> Callable[[], None]:
        header = b""
        offset = 0
        rest = name.num_bytes
        for views in pieces([self._buffers.header, *blocks.views]):
            if not transfer(os.preadv, fd, views, offset):
                raise Unreadable("has another size")
            if not offset:
                header = bytes(self._buffers.header)
                if checksum_in(header, name) is None:
                    if has_other_algorithm(header, name):
                        raise Unreadable("has another checksum algorithm", is_damaged=False)
                    raise Unreadable("has another header")
            offset += sum(map(len, views))
            rows = [view for view in views if not self._buffers.has(view)]
            rest -= sum(map(len, rows))
            row_sum.add(rows)
        if not blocks.take_last():
            raise Unreadable("has other bytes behind its rows")
        row_sum.add(blocks.ends)
        expected = checksum_in(header, name)

        def check() -> None:
            if row_sum.digest() != expected:
                raise Unreadable("has another checksum")

        return check

    def write(self, root: int, name: EntryName, parts: Sequence[np.ndarray], sums: RowSums) -> None:
        """Write the file of an entry, and replace one that is there.

        Raises
        ------
        OSError
            If the file cannot be written. Then it is as it was before.
        """
        tenant, shard, file = place_of(name)
        temporary = f"{os.getpid()}.{secrets.token_hex(8)}.part"
        blocks = RowBlocks(parts, self._buffers)
        row_sum = sums.begin()
        row_sum.add(blocks.parts)
        with open_folder(TEMPORARY, root, make=True) as folder:
            try:
                try:
                    self._write_file(temporary, folder, name, blocks, row_sum)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self.is_direct:
                        raise
                    self.is_direct = False
                    remove(temporary, folder)
                    self._write_file(temporary, folder, name, blocks, row_sum)
                with (
                    open_folder(ENTRIES, root, make=True) as entries,
                    open_folder(tenant, entries, make=True) as tenant_folder,
                    open_folder(shard, tenant_folder, make=True) as target,
                ):
                    os.rename(temporary, file, src_dir_fd=folder, dst_dir_fd=target)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise

    def _write_file(
        self, temporary: str, folder: int, name: EntryName, blocks: RowBlocks, row_sum: RowSum
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        is_direct = self.is_direct and blocks.is_aligned
        fd = os.open(temporary, flags | (_DIRECT if is_direct else 0), 0o600, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            blocks.fill_last()
            offset = BLOCK_BYTES
            for views in pieces(blocks.views):
                if not transfer(os.pwritev, fd, views, offset):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                offset += sum(map(len, views))
            self._buffers.header[:] = header_of(name, row_sum.digest())
            transfer(os.pwritev, fd, [self._buffers.header], 0)
        finally:
            os.close(fd)


def has_file(entries: int, name: EntryName) -> bool:
    """Whether an entry has a file of the right size. Its content is not read."""
    try:
        state = os.stat("/".join(place_of(name)), dir_fd=entries, follow_symlinks=False)
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    return stat.S_ISREG(state.st_mode) and state.st_size == file_bytes(name)


def remove_file(entries: int, name: EntryName) -> bool:
    """Remove the file of an entry, and return whether there was one."""
    tenant, shard, file = place_of(name)
    try:
        with open_folder(tenant, entries) as tenant_folder, open_folder(shard, tenant_folder) as folder:
            return remove(file, folder)
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise


def _check(fd: int, name: EntryName) -> None:
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise Unreadable("is not a regular file")
    if state.st_nlink > 1:
        raise Unreadable("has another name elsewhere")
    if state.st_size != file_bytes(name):
        raise Unreadable("has another size")


def _set_direct(fd: int, is_direct: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT if is_direct else flags & ~_DIRECT)
