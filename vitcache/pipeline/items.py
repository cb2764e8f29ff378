"""What a caller tells of its requests: items, the spans of their tokens, and the window of this step."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import index
from typing import Any, overload

from torch import Tensor

from vitcache.keys.content import check_key
from vitcache.placement.spans import Span


class Item:
    """One image, video or audio clip of a request.

    Parameters
    ----------
    feature
        What the encoder takes: a CPU tensor, a NumPy array, a CUDA tensor, or a callable without arguments
        that returns one of these. None where `rows` are given, or where a key will be found in the cache.
    spans
        Where its rows go, in tokens of the request's prompt: a `Span`, or a list of them in any order. None
        or an empty list: the item is never loaded nor encoded.
    num_rows
        Rows that the encoder gives. None: as many as the spans reach, or as there are `rows`.
    key
        32 bytes that stand for the content in the pipeline's cache; they must tell apart whatever changes the
        rows, `encoder_kwargs` too. None: the pipeline hashes the feature.
    rows
        Precomputed embeddings ``(n, row_width)`` in the place of a feature. They are placed as they are, and
        not cached.
    **encoder_kwargs
        For the encoder, which finds them in `Item.encoder_kwargs`. Part of the key that the pipeline makes.

    Raises
    ------
    ValueError
        If the spans reach beyond `num_rows`, `key` is not of 32 bytes, there are both a feature and `rows`,
        or these are not ``(num_rows, row_width)``.
    TypeError
        If an argument is of another type.
    """

    __slots__ = ("digest", "encoder_kwargs", "feature", "key", "num_rows", "rows", "spans")

    def __init__(
        self,
        feature: Any,
        spans: Span | Sequence[Span] | None,
        *,
        num_rows: int | None = None,
        key: bytes | None = None,
        rows: Tensor | None = None,
        **encoder_kwargs: Any,
    ) -> None:
        if rows is not None:
            _check_rows(rows, feature, num_rows)
        if isinstance(spans, Span):
            spans = [spans]
        self.spans: tuple[Span, ...] = tuple(spans or ())
        for span in self.spans:
            if not isinstance(span, Span):
                raise TypeError(f"spans must be Span, one is {type(span).__name__}")
        reached = max((span.source_start + span.length for span in self.spans), default=0)
        if num_rows is None:
            num_rows = reached if rows is None else len(rows)
        self.num_rows = index(num_rows)
        if self.num_rows < reached:
            raise ValueError(f"the spans reach row {reached}, the item has num_rows {self.num_rows}")
        if key is not None:
            check_key(key)
        self.feature = feature
        self.key = key
        self.rows = rows
        self.encoder_kwargs = encoder_kwargs
        # The key that a pipeline made, and its namespace, so that later chunks need not hash again.
        self.digest: tuple[bytes, bytes] | None = None

    def __repr__(self) -> str:
        return f"Item({type(self.feature).__name__}, {list(self.spans)}, num_rows={self.num_rows})"


class Items(Sequence[Item]):
    """The items of one request, sorted once: a step finds those of its window without a look at the others.

    A `Chunk` makes one of any sequence; whoever sends many chunks of one request makes it once.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = tuple(items)
        for position, item in enumerate(self._items):
            if not isinstance(item, Item):
                raise TypeError(f"item {position} must be an Item, it is {type(item).__name__}")
        self._spans = sorted(
            (span.start, position, span)
            for position, item in enumerate(self._items)
            for span in item.spans
            if span.length
        )
        self._starts = [start for start, _, _ in self._spans]
        # Where none up to here ends behind a token, none before it does.
        self._furthest = list(accumulate((span.stop for _, _, span in self._spans), max))

    def within(self, start: int, stop: int) -> dict[int, list[Span]]:
        """Return the items that overlap ``[start, stop)`` by position, in the order of their first tokens
        there, each with its spans that do.
        """
        found: dict[int, list[Span]] = {}
        if start == stop:  # it may lie within a span, and overlaps none
            return found
        first = bisect_right(self._furthest, start)
        for _, position, span in self._spans[first : bisect_left(self._starts, stop)]:
            if span.stop > start:
                found.setdefault(position, []).append(span)
        return found

    @overload
    def __getitem__(self, position: int) -> Item: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Item]: ...
    def __getitem__(self, position: int | slice) -> Item | Sequence[Item]:
        return self._items[position]

    def __len__(self) -> int:
        return len(self._items)


class Chunk:
    """The window of one request in one step: its tokens ``[start, start + length)``.

    Parameters
    ----------
    items
        All items of the request, of which the window may touch some; best an `Items`.
    start, length
        The window, in tokens of the request's prompt.
    token_offset
        Where the window begins in the tokens of the batch.

    Raises
    ------
    ValueError
        If a number is negative.
    TypeError
        If a number is no int, or an item no `Item`.
    """

    __slots__ = ("items", "length", "start", "token_offset")

    def __init__(self, items: Sequence[Item], start: int, length: int, token_offset: int = 0) -> None:
        self.items = items if isinstance(items, Items) else Items(items)
        for name, value in (("start", start), ("length", length), ("token_offset", token_offset)):
            number = index(value)
            if number < 0:
                raise ValueError(f"{name} is {number}, it must be at least 0")
            setattr(self, name, number)

    start: int
    length: int
    token_offset: int

    def __repr__(self) -> str:
        return f"Chunk({len(self.items)} items, {self.start}, {self.length}, {self.token_offset})"


def _check_rows(rows: Any, feature: Any, num_rows: int | None) -> None:
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows must be a tensor, it is {type(rows).__name__}")
    if feature is not None:
        raise ValueError("an item has a feature or rows, not both")
    if rows.dim() != 2 or num_rows not in (None, len(rows)):
        expected = "num_rows" if num_rows is None else num_rows
        raise ValueError(f"rows has shape {tuple(rows.shape)}, it must be ({expected}, row_width)")
