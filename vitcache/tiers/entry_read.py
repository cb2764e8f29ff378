"""`EntryRead`: the file of one entry while it is read, piece by piece, and the checks of its content."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from vitcache.tiers.blocks import BlockBuffers, RowBlocks, transfer
from vitcache.tiers.header import (
    checksum_in,
    checksum_of,
    digest_of_piece,
    file_bytes,
    has_other_algorithm,
)
from vitcache.tiers.protocol import EntryName, Transfer


class Unreadable(Exception):
    """A file does not have the rows of its entry. `kind` says why, in few words."""

    def __init__(self, kind: str, *, is_damaged: bool = True) -> None:
        super().__init__(kind)
        self.kind, self.is_damaged = kind, is_damaged


class EntryRead:
    """One entry that is read from an open file. Several threads may read and hash its pieces.

    Attributes
    ----------
    fd
        Descriptor of the file.
    num_bytes
        Bytes of all rows.
    blocks, pieces
        The memory of the entry.
    failed
        The first error of a piece; None if all pieces so far have been read.
    """

    def __init__(self, fd: int, fetch: Transfer, buffers: BlockBuffers) -> None:
        self.fd = fd
        self.num_bytes = fetch.name.num_bytes
        self._name, self._buffers = fetch.name, buffers
        self.blocks = RowBlocks(fetch.parts, buffers)
        self.pieces = self.blocks.pieces()
        self._digests = [b""] * len(self.pieces)
        self.failed: OSError | Unreadable | None = None

    def run(self, numbers: range) -> None:
        """Read adjacent pieces in one call, and hash them, unless an earlier read has failed.

        An error of the read is in `failed`.
        """
        if self.failed is not None:
            return
        pieces = self.pieces[numbers.start : numbers.stop]
        views = [view for piece in pieces for view in piece.views]
        try:
            if not transfer(os.preadv, self.fd, views, pieces[0].offset):
                raise Unreadable("has another size")
        except (OSError, Unreadable) as error:
            self.failed = self.failed or error
            return
        for number, piece in zip(numbers, pieces, strict=True):
            self._digests[number] = digest_of_piece(piece.rows)

    @property
    def lacks_direct_io(self) -> bool:
        """Whether the file system may have refused direct I/O."""
        return isinstance(self.failed, OSError) and self.failed.errno == errno.EINVAL

    def error(self) -> OSError | Unreadable | None:
        """Return why the rows cannot be used; None if they match the header and the header the name."""
        if self.failed is not None:
            return self.failed
        header = bytes(self._buffers.header)
        expected = checksum_in(header, self._name)
        if expected is None and has_other_algorithm(header, self._name):
            return Unreadable("has another checksum algorithm", is_damaged=False)
        if expected is None:
            return Unreadable("has another header")
        if not self.blocks.take_last():
            return Unreadable("has other bytes behind its rows")
        if checksum_of(self._digests) != expected:
            return Unreadable("has another checksum")
        return None


def check_file(fd: int, name: EntryName) -> None:
    """Raise Unreadable unless an open file is regular, has one name, and has the size of the entry."""
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise Unreadable("is not a regular file")
    if state.st_nlink > 1:
        raise Unreadable("has another name elsewhere")
    if state.st_size != file_bytes(name):
        raise Unreadable("has another size")


def set_direct(fd: int, is_direct: bool) -> None:
    """Turn direct I/O of an open file on or off."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if is_direct else flags & ~os.O_DIRECT)
