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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from vitcache.tiers.blocks import RowBlocks, allocate_buffers, transfer
from vitcache.tiers.entry_read import EntryRead, Unreadable, check_file, set_direct
from vitcache.tiers.folders import ABSENT, open_folder, remove
from vitcache.tiers.header import (
    BLOCK_BYTES,
    checksum_of,
    digest_of_piece,
    file_bytes,
    header_of,
    place_of,
)
from vitcache.tiers.protocol import EntryName, Transfer
from vitcache.tiers.side_threads import SideThreads

_OPEN_FILES = 32  # that are read together
# A read has a quarter of the pieces that are left, within these limits: long reads keep the disk busy, and
# the last ones are short, so that all threads end together. This is guided self-scheduling (Polychronopoulos
# and Kuck, 1987). The numbers were measured with a disk of 1.1 to 2.6 GB/s.
_LEAST_PIECES, _MOST_PIECES, _SHARES = 3, 7, 4
# Beside the caller's: the disk has several requests while two threads hash.
_SIDE_THREADS = 4
_SMALL_BYTES = 256 << 10  # fewer are hashed by the thread that writes them
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECT: int = getattr(os, "O_DIRECT", 0)
ENTRIES, TEMPORARY = "entries", "tmp"


class EntryFiles:
    """Reads and writes files of entries below an open root. One thread at a time calls its methods.

    Attributes
    ----------
    is_direct
        Whether aligned memory is read and written by direct I/O. False after the file system refused it.
    """

    def __init__(self, *, direct: bool) -> None:
        self.is_direct = direct and bool(_DIRECT)
        self._buffers = allocate_buffers(_OPEN_FILES)
        self._side = SideThreads("vitcache-disk", _SIDE_THREADS)

    def read(self, entries: int, fetches: Sequence[Transfer]) -> Iterator[tuple[int, Exception | None]]:
        """Read the rows of entries to their parts.

        Yields the position of each entry, with None if the parts have its rows. Else with FileNotFoundError
        if it has no file, Unreadable if its file does not match, or another OSError.
        """
        for first in range(0, len(fetches), _OPEN_FILES):
            results: dict[int, Exception | None] = {}
            reads: dict[int, EntryRead] = {}
            try:
                for position in range(first, min(first + _OPEN_FILES, len(fetches))):
                    try:
                        reads[position] = self._begin(entries, fetches[position], position - first)
                    except (OSError, Unreadable) as error:
                        results[position] = error
                self._run(list(reads.values()))
                for position, read in reads.items():
                    results[position] = read.error()
            finally:
                for read in reads.values():
                    os.close(read.fd)
            yield from sorted(results.items())

    def _begin(self, entries: int, fetch: Transfer, number: int) -> EntryRead:
        tenant, shard, file = place_of(fetch.name)
        try:
            with open_folder(tenant, entries) as tenant_folder, open_folder(shard, tenant_folder) as folder:
                fd = self._open(file, folder)
        except OSError as error:
            if error.errno in ABSENT:
                raise FileNotFoundError(error.errno, "the entry has no file that can be read") from None
            raise
        try:
            check_file(fd, fetch.name)
            read = EntryRead(fd, fetch, self._buffers[number])
            if not read.blocks.is_aligned and self.is_direct:
                set_direct(fd, False)
            return read
        except BaseException:
            os.close(fd)
            raise

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

    def _run(self, reads: Sequence[EntryRead]) -> None:
        """Read and hash all pieces, on several threads: the disk has requests while a thread hashes."""
        self._share(reads)
        refused = [read for read in reads if read.lacks_direct_io]
        if refused:
            self.is_direct = False
            for read in refused:
                set_direct(read.fd, False)
                read.failed = None
            self._share(refused)

    def _share(self, reads: Sequence[EntryRead]) -> None:
        works: list[Callable[[], None]] = []
        left = sum(len(read.pieces) for read in reads)
        for read in reads:
            last = 0
            while last < len(read.pieces):
                first, count = last, min(max(left // _SHARES, _LEAST_PIECES), _MOST_PIECES)
                last = min(first + count, len(read.pieces))
                left -= last - first
                works.append(partial(read.run, range(first, last)))
        if sum(read.num_bytes for read in reads) < _SMALL_BYTES:
            for work in works:
                work()
        else:
            self._side.share(works)

    def write(self, root: int, store: Transfer) -> None:
        """Write the file of an entry, and replace one that is there.

        Raises
        ------
        OSError
            If the file cannot be written. Then it is as it was before.
        """
        tenant, shard, file = place_of(store.name)
        temporary = f"{os.getpid()}.{secrets.token_hex(8)}.part"
        with open_folder(TEMPORARY, root, make=True) as folder:
            try:
                try:
                    self._write(temporary, folder, store)
                except OSError as error:
                    if error.errno != errno.EINVAL or not self.is_direct:
                        raise
                    self.is_direct = False
                    remove(temporary, folder)
                    self._write(temporary, folder, store)
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

    def _write(self, temporary: str, folder: int, store: Transfer) -> None:
        buffers = self._buffers[0]
        blocks = RowBlocks(store.parts, buffers)
        blocks.fill_last()
        buffers.header[:] = bytes(BLOCK_BYTES)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
        if self.is_direct and blocks.is_aligned:
            flags |= _DIRECT
        digests: list[bytes] = []

        def hash_rows() -> None:
            digests.extend(digest_of_piece(piece.rows) for piece in blocks.pieces())

        def write_rows() -> None:
            # With an empty header: a block that is written later would be elsewhere on the disk.
            if not transfer(os.pwritev, fd, [buffers.header, *blocks.views], 0):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        fd = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if store.name.num_bytes < _SMALL_BYTES:
                write_rows()
                hash_rows()
            else:
                self._side.run_both(hash_rows, write_rows)
            buffers.header[:] = header_of(store.name, checksum_of(digests))
            if not transfer(os.pwritev, fd, [buffers.header], 0):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)

    def close(self) -> None:
        """End the side threads."""
        self._side.close()


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
