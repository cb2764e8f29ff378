"""Rows as blocks of a file: which memory is read or written, and whether direct I/O accepts it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitcache.tiers.header import BLOCK_BYTES

_MOST_VIEWS = 1000  # of one call: IOV_MAX is 1024
_PIECE_BYTES = 4 << 20


class BlockBuffers:
    """Two blocks of aligned memory: of a header, and of the last block of rows.

    Rows end anywhere in their last block. The memory behind them may belong to another entry, so this block
    is copied here and filled with zeros.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 2 * BLOCK_BYTES)
        view = memoryview(self._memory)
        self.header, self.last = view[:BLOCK_BYTES], view[BLOCK_BYTES:]

    def has(self, view: memoryview) -> bool:
        """Whether a view is of these blocks."""
        return view.obj is self._memory


class RowBlocks:
    """The rows of one entry as views of whole blocks. The last view may be `BlockBuffers.last`.

    Attributes
    ----------
    parts
        The rows: bytes, in the memory of the caller.
    views
        The same number of bytes, rounded up to whole blocks.
    ends
        The rows in the last view if it is `BlockBuffers.last`: bytes, in the memory of the caller.
    is_aligned
        Whether direct I/O accepts the views.
    """

    def __init__(self, parts: Sequence[np.ndarray], buffers: BlockBuffers) -> None:
        self.parts = [memoryview(part) for part in parts if part.size]
        size = sum(map(len, self.parts))
        self._buffer = buffers.last
        self._rest = size % BLOCK_BYTES
        self.ends: list[memoryview] = []
        self.views = list(self.parts)
        missing = self._rest
        while missing:
            last = self.views.pop()
            kept = max(len(last) - missing, 0)
            self.ends.insert(0, last[kept:])
            missing -= len(last) - kept
            if kept:
                self.views.append(last[:kept])
        starts = [part.__array_interface__["data"][0] for part in parts if part.size]
        self.is_aligned = not any(
            start % BLOCK_BYTES or len(view) % BLOCK_BYTES
            for start, view in zip(starts, self.views, strict=False)
        )
        if self._rest:
            self.views.append(self._buffer)

    def fill_last(self) -> None:
        """Copy the end of the rows to the last block, and zeros behind it."""
        at = 0
        for end in self.ends:
            self._buffer[at : at + len(end)] = end
            at += len(end)
        if at:
            self._buffer[at:] = bytes(BLOCK_BYTES - at)

    def take_last(self) -> bool:
        """Copy the end of the rows from the last block. Return whether zeros are behind it."""
        at = 0
        for end in self.ends:
            end[:] = self._buffer[at : at + len(end)]
            at += len(end)
        return not at or bytes(self._buffer[at:]).count(0) == BLOCK_BYTES - at


def pieces(views: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """Divide views into lists of limited length and size, each for one call of the operating system."""
    piece: list[memoryview] = []
    size = 0
    for view in views:
        at = 0
        while at < len(view):
            part = view[at : at + _PIECE_BYTES - size]
            piece.append(part)
            at += len(part)
            size += len(part)
            if size == _PIECE_BYTES or len(piece) == _MOST_VIEWS:
                yield piece
                piece, size = [], 0
    if piece:
        yield piece


def transfer(
    call: Callable[[int, Sequence[memoryview], int], int], fd: int, views: list[memoryview], offset: int
) -> bool:
    """Repeat `os.preadv` or `os.pwritev` until all views are done. Return False at the end of the file."""
    while views:
        done = call(fd, views, offset)
        if done <= 0:
            return False
        offset += done
        while views and done >= len(views[0]):
            done -= len(views[0])
            views = views[1:]
        if done:
            views = [views[0][done:], *views[1:]]
    return True
