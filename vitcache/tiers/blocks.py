"""Rows as blocks of a file: which memory is read or written, in pieces, and whether direct I/O accepts it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vitcache.tiers.header import BLOCK_BYTES, PIECE_BYTES

_MOST_VIEWS = 1000  # of one call: IOV_MAX is 1024


class BlockBuffers(NamedTuple):
    """Two blocks of aligned memory for one entry: of its header, and of the last block of its rows.

    Rows end anywhere in their last block. The memory behind them may belong to another entry, so this block
    is copied here and filled with zeros.
    """

    header: memoryview
    last: memoryview


def allocate_buffers(count: int) -> list[BlockBuffers]:
    """Return buffers for `count` entries."""
    memory = memoryview(mmap.mmap(-1, 2 * count * BLOCK_BYTES))
    blocks = [memory[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] for at in range(2 * count)]
    return [BlockBuffers(*blocks[at : at + 2]) for at in range(0, 2 * count, 2)]


class Piece(NamedTuple):
    """Consecutive rows of a file. Each piece has a digest of its own, so several threads can hash one entry.

    Attributes
    ----------
    offset
        Of `views` in the file. The first piece begins with the header.
    views
        Whole blocks.
    rows
        The bytes of rows in them.
    """

    offset: int
    views: list[memoryview]
    rows: list[memoryview]


class RowBlocks:
    """The rows of one entry as views of whole blocks. The last view may be `BlockBuffers.last`.

    Attributes
    ----------
    views
        The rows, rounded up to whole blocks.
    is_aligned
        Whether direct I/O accepts the views.
    """

    def __init__(self, parts: Sequence[np.ndarray], buffers: BlockBuffers) -> None:
        used = [part for part in parts if part.size]
        self._buffers = buffers
        self.views = [part.data for part in used]
        self._rest = sum(map(len, self.views)) % BLOCK_BYTES
        self._ends: list[memoryview] = []  # the last `_rest` bytes of the rows
        missing = self._rest
        while missing:
            last = self.views.pop()
            kept = max(len(last) - missing, 0)
            self._ends.insert(0, last[kept:])
            missing -= len(last) - kept
            if kept:
                self.views.append(last[:kept])
        self.is_aligned = not any(
            part.__array_interface__["data"][0] % BLOCK_BYTES or len(view) % BLOCK_BYTES
            for part, view in zip(used, self.views, strict=False)
        )
        if self._rest:
            self.views.append(buffers.last)

    def fill_last(self) -> None:
        """Copy the end of the rows to the last block, and zeros behind it."""
        at = 0
        for end in self._ends:
            self._buffers.last[at : at + len(end)] = end
            at += len(end)
        self._buffers.last[at:] = bytes(BLOCK_BYTES - at)

    def take_last(self) -> bool:
        """Copy the end of the rows from the last block. Return whether zeros are behind it."""
        at = 0
        for end in self._ends:
            end[:] = self._buffers.last[at : at + len(end)]
            at += len(end)
        return not at or bytes(self._buffers.last[at:]).count(0) == BLOCK_BYTES - at

    def pieces(self) -> list[Piece]:
        """Return the header and the rows as pieces of `PIECE_BYTES`, at least one."""
        divided: list[list[memoryview]] = [[]]
        size = 0
        for view in self.views:
            at = 0
            while at < len(view):
                if size == PIECE_BYTES:
                    divided.append([])
                    size = 0
                part = view[at : at + PIECE_BYTES - size]
                divided[-1].append(part)
                at += len(part)
                size += len(part)
        pieces = [
            Piece(BLOCK_BYTES + number * PIECE_BYTES, views, views) for number, views in enumerate(divided)
        ]
        if self._rest:
            offset, views, _ = pieces[-1]
            pieces[-1] = Piece(offset, views, [*views[:-1], self._buffers.last[: self._rest]])
        pieces[0] = Piece(0, [self._buffers.header, *pieces[0].views], pieces[0].rows)
        return pieces


def transfer(
    call: Callable[[int, Sequence[memoryview], int], int], fd: int, views: Sequence[memoryview], offset: int
) -> bool:
    """Repeat `os.preadv` or `os.pwritev` until all views are done. Return False at the end of the file."""
    at = 0
    while at < len(views):
        done = call(fd, views[at : at + _MOST_VIEWS], offset)
        if done <= 0:
            return False
        offset += done
        while at < len(views) and done >= len(views[at]):
            done -= len(views[at])
            at += 1
        if done:
            views = [*views[:at], views[at][done:], *views[at + 1 :]]
    return True
