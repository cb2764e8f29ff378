"""`LazyRows`: the rows of the items of one call, which stay in the cache until they are placed or copied."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vitcache.device.locks import new_lock
from vitcache.pages.lease import Lease
from vitcache.placement.ops import scatter_embeddings
from vitcache.placement.spans import Span

if TYPE_CHECKING:
    from vitcache.adapters.output_form import OutputForm

Range = tuple[int, int]
"""The first of some rows, and the row after the last one."""


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Return the ranges of the same rows, with adjacent ranges as one."""
    result: list[Range] = []
    for first, last in ranges:
        if result and result[-1][1] == first:
            result[-1] = result[-1][0], last
        else:
            result.append((first, last))
    return tuple(result)


class Piece(NamedTuple):
    """Some rows of one item."""

    rows: Tensor | Lease
    first: int
    num_rows: int


class LazyRows:
    """The rows of several items, end to end: leases, and rows that were just encoded.

    Any thread may use it. The leases end when the object is garbage-collected.

    Parameters
    ----------
    items
        The rows of each item, in the form's width, all on its device. Their dtypes hold each value of the
        form's dtype.
    lengths
        Number of rows of each item.
    form
        The form of the stock output.

    Attributes
    ----------
    whole
        The ranges of all rows.
    lock
        Held while features of these rows are copied for the first time; `copy_plane` needs it.
    """

    __slots__ = ("_copied", "_items", "_lengths", "device", "dtype", "hidden", "levels", "lock", "whole")

    def __init__(self, items: Sequence[Tensor | Lease], lengths: Sequence[int], form: OutputForm) -> None:
        self._items, self._lengths = items, lengths
        self.whole: tuple[Range, ...] = ((0, sum(lengths)),)
        self.levels = len(form.levels)
        self.hidden = form.width // (1 + self.levels)
        self.dtype, self.device = form.dtype, form.device
        self.lock = new_lock()
        # Of the last copy: its ranges, its stream, and the planes that no caller has got.
        self._copied: tuple[Sequence[Range], Any, dict[int, Tensor]] | None = None

    def without_items(self) -> LazyRows:
        """Return an object with the same attributes, also the same lock, which keeps no lease."""
        other = object.__new__(LazyRows)
        other._items, other._lengths, other._copied = (), (), None
        for name in ("device", "dtype", "hidden", "levels", "lock", "whole"):
            setattr(other, name, getattr(self, name))
        return other

    def pieces(self, ranges: Sequence[Range]) -> list[Piece]:
        """Return the rows in `ranges`, in order."""
        pieces = []
        for start, stop in ranges:
            begin = 0
            for item, length in zip(self._items, self._lengths, strict=True):
                first, last = max(start - begin, 0), min(stop - begin, length)
                if first < last:
                    pieces.append(Piece(item, first, last - first))
                begin += length
        return pieces

    def copy_plane(self, plane: int, ranges: Sequence[Range]) -> Tensor:
        """Return a new tensor ``(n, hidden)``: one plane of the ``n`` rows in `ranges`.

        One launch copies all planes of these rows, and the next calls for the other planes return theirs.
        The copy is queued on the current stream. The caller holds `lock`.
        """
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        # One read, as a signal handler or a finalizer may call this method, too.
        of_ranges, of_stream, planes = self._copied or (None, None, {})
        copied = planes.pop(plane, None) if (of_ranges, of_stream) == (ranges, stream) else None
        if copied is None:
            planes = dict(enumerate(self._copy(ranges)))
            copied = planes.pop(plane)
            self._copied = ranges, stream, planes
        return copied

    def _copy(self, ranges: Sequence[Range]) -> Tensor:
        """Return a new tensor ``(1 + levels, n, hidden)`` with the ``n`` rows in `ranges`."""
        pieces = self.pieces(ranges)
        number = sum(piece.num_rows for piece in pieces)
        planes = torch.empty((1 + self.levels, number, self.hidden), dtype=self.dtype, device=self.device)
        spans, start = [], 0
        for piece in pieces:
            spans.append(Span(start, piece.num_rows, piece.first))
            start += piece.num_rows
        levels = planes[1:] if self.levels else None
        sources = [piece.rows for piece in pieces]
        scatter_embeddings(planes[0], sources, spans, deepstack=levels)
        if self.device.type == "cuda":
            for rows in sources:
                if isinstance(rows, Tensor):  # made on a stream that may be another one; a lease takes care
                    rows.record_stream(torch.cuda.current_stream(self.device))
        return planes
