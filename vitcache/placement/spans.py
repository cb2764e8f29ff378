"""Spans: which rows of an item are written to which tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from vitcache.arguments import to_int
from vitcache.placement.token_arrays import to_array

# The largest token that a step can place: sums of two such numbers have less than 64 bits.
LARGEST_TOKEN = 1 << 60


class _SpanFields(NamedTuple):
    start: int
    length: int
    source_start: int = 0


class Span(_SpanFields):
    """A run of rows of one item, and the run of tokens to which they are written.

    Rows ``[source_start, source_start + length)`` are written to tokens ``[start, start + length)``. A `Span`
    is an immutable tuple of three integers.

    Parameters
    ----------
    start
        First token.
    length
        Number of tokens, and of rows. A span of length 0 writes nothing.
    source_start
        First of the item's rows that are written.

    Raises
    ------
    ValueError
        If an argument is negative.
    TypeError
        If an argument is not an integer, or is a bool.

    Examples
    --------
    >>> from vitcache import Span
    >>> span = Span(start=5, length=3)
    >>> span
    Span(start=5, length=3, source_start=0)
    >>> span.stop
    8
    """

    __slots__ = ()

    def __new__(cls, start: int, length: int, source_start: int = 0) -> Span:
        """Check the three integers. Integers of NumPy and 0-d tensors are converted to `int`."""
        if not (type(start) is type(length) is type(source_start) is int):
            start = to_int("Span.start", start)
            length = to_int("Span.length", length)
            source_start = to_int("Span.source_start", source_start)
        span = tuple.__new__(cls, (start, length, source_start))
        if min(span) < 0:
            name = cls._fields[[value < 0 for value in span].index(True)]
            raise ValueError(f"Span.{name} is {getattr(span, name)}, it must be at least 0")
        return span

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Span:  # type: ignore[override]
        # `_replace` calls `_make`. The `_make` of NamedTuple would skip the checks.
        return cls(*iterable)

    @property
    def stop(self) -> int:
        """The index after the last token of the span."""
        return self.start + self.length


def spans_from_inclusive(offsets: Iterable[Sequence[int]] | None) -> list[Span]:
    """Spans of one item from pairs of tokens, both ends inclusive, as SGLang stores offsets.

    Parameters
    ----------
    offsets
        Pairs ``(first, last)`` of tokens. Each pair gets the next ``last - first + 1`` rows of the item. None
        for an item without offsets: it has no spans.

    Raises
    ------
    ValueError
        If `last` is less than `first`, `first` is negative, or an offset is not a pair.
    TypeError
        If a token is not an integer, or is a bool.

    Examples
    --------
    >>> from vitcache import spans_from_inclusive
    >>> spans_from_inclusive([(2, 4), (7, 7)])
    [Span(start=2, length=3, source_start=0), Span(start=7, length=1, source_start=3)]
    """
    spans: list[Span] = []
    rows = 0
    for offset in () if offsets is None else offsets:
        tokens = [to_int(f"a token of offset {len(spans)}", token) for token in offset]
        if len(tokens) != 2:
            raise ValueError(f"offset {len(spans)} has {len(tokens)} tokens, it must have 2: first and last")
        first, last = tokens
        if last < first:
            raise ValueError(f"offset {len(spans)} ends at token {last}, before its first token {first}")
        spans.append(Span(first, last - first + 1, rows))
        rows += spans[-1].length
    return spans


def spans_from_placeholder(offset: int, length: int, is_embed: Any = None) -> list[Span]:
    """Spans of one item from a placeholder range, as vLLM stores it.

    Parameters
    ----------
    offset, length
        The placeholder's first token and its number of tokens.
    is_embed
        List, array or tensor of `length` bools: whether the token is replaced by a row. None: every token.

    Returns
    -------
    list of Span
        One span per run of replaced tokens. They get the item's rows in order.

    Raises
    ------
    ValueError
        If `is_embed` does not have `length` entries; if `offset` or `length` is negative; if the last token
        of the placeholder is larger than 2**60; if `is_embed` is a tensor whose storage was freed.
    TypeError
        If `is_embed` is not boolean, or not a list, array or tensor; if `offset` or `length` is not an
        integer, or is a bool.

    Examples
    --------
    >>> from vitcache import spans_from_placeholder
    >>> spans_from_placeholder(10, 4, is_embed=[True, True, False, True])
    [Span(start=10, length=2, source_start=0), Span(start=13, length=1, source_start=2)]
    """
    whole = Span(to_int("offset", offset, 0), to_int("length", length, 0))
    if whole.stop > LARGEST_TOKEN:
        raise ValueError(f"offset {whole.start} + length {whole.length} is beyond {LARGEST_TOKEN} tokens")
    if is_embed is None:
        return [whole]
    mask = to_array("is_embed", is_embed)
    if mask.size == 0:
        mask = mask.astype(bool)
    if mask.dtype != bool:
        raise TypeError(f"is_embed must be boolean, got {mask.dtype}")
    if mask.shape != (whole.length,):
        raise ValueError(f"is_embed has shape {mask.shape}, the placeholder has {whole.length} tokens")
    return runs_of_tokens(whole.start + np.flatnonzero(mask))


def spans_from_token_ids(input_ids: Any, token_id: int, num_rows: Sequence[int]) -> list[list[Span]]:
    """Spans of every item from the placeholder tokens that a Hugging Face processor puts in a prompt.

    Parameters
    ----------
    input_ids
        Token ids of the prompt: list, array or tensor of ints. A ``(B, T)`` input is flattened to ``B * T``
        tokens. A CUDA tensor is copied to the host, and the host waits for the copy.
    token_id
        The id of a placeholder token. Some models use a negative id.
    num_rows
        Rows of each item, in prompt order.

    Returns
    -------
    list of list of Span
        One list per item, in prompt order. Item ``i`` gets the next ``num_rows[i]`` placeholder tokens, which
        need not be adjacent.

    Raises
    ------
    ValueError
        If the number of placeholder tokens is not ``sum(num_rows)``; if an entry of `num_rows` is negative;
        if an id has more than 64 bits; if `input_ids` is a tensor whose storage was freed.
    TypeError
        If `input_ids` is not a list, array or tensor of integers; if `num_rows` is not a sequence; if
        `token_id` or an entry of `num_rows` is not an integer, or is a bool.

    Examples
    --------
    Two images of three rows and one row; 9 is the placeholder's id:

    >>> from vitcache import spans_from_token_ids
    >>> first, second = spans_from_token_ids([1, 9, 9, 9, 2, 9, 3], token_id=9, num_rows=[3, 1])
    >>> first, second
    ([Span(start=1, length=3, source_start=0)], [Span(start=5, length=1, source_start=0)])
    """
    token_id = to_int("token_id", token_id)
    try:
        counts = list(num_rows)
    except TypeError:
        kind = type(num_rows).__name__
        raise TypeError(f"num_rows must be a sequence with an int per item, got {kind}") from None
    num_rows = [to_int(f"num_rows[{item}]", count, 0) for item, count in enumerate(counts)]
    ids = to_array("input_ids", input_ids).reshape(-1)
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"input_ids must be integers, got {ids.dtype}")
    # An id that the array's dtype does not have is at no token.
    limits = np.iinfo(ids.dtype) if ids.size else None
    can_occur = limits is not None and limits.min <= token_id <= limits.max
    tokens = np.flatnonzero(ids == token_id) if can_occur else np.empty(0, np.int64)
    if len(tokens) != sum(num_rows):
        raise ValueError(
            f"the prompt has {len(tokens)} tokens with id {token_id}, "
            f"the {len(num_rows)} items have {sum(num_rows)} rows"
        )
    ends = np.cumsum([0, *num_rows])
    return [runs_of_tokens(tokens[first:last]) for first, last in pairwise(ends)]


def clip_spans(spans: Iterable[Span], start: int, length: int) -> list[Span]:
    """The parts of `spans` in the window ``[start, start + length)``, counted from token `start`.

    A span outside of the window is omitted. A span that begins before the window loses its first rows:
    `source_start` is increased.

    Parameters
    ----------
    spans
        Spans of one item, in tokens of the prompt.
    start, length
        First token and number of tokens of the window, usually a prefill chunk.

    Raises
    ------
    ValueError
        If `start` or `length` is negative.
    TypeError
        If an entry of `spans` is not a `Span`, or `start` or `length` is not an integer or is a bool.

    Examples
    --------
    An image of six rows at tokens 4 to 9, and the chunk of tokens 8 to 15:

    >>> from vitcache import Span, clip_spans
    >>> clip_spans([Span(4, 6)], start=8, length=8)
    [Span(start=0, length=2, source_start=4)]
    """
    window = Span(to_int("start", start), to_int("length", length))
    clipped: list[Span] = []
    for span in spans:
        if not isinstance(span, Span):
            raise TypeError(f"every span must be a Span, got {type(span).__name__}")
        first, last = max(span.start, window.start), min(span.stop, window.stop)
        if first < last:
            clipped.append(Span(first - window.start, last - first, span.source_start + first - span.start))
    return clipped


def runs_of_tokens(tokens: np.ndarray, first_row: int = 0) -> list[Span]:
    """One span per run of adjacent tokens. The tokens get the rows from `first_row` on, in order."""
    if len(tokens) == 0:
        return []
    breaks = np.flatnonzero(np.diff(tokens) != 1) + 1
    firsts = np.concatenate(([0], breaks))
    lengths = np.diff(np.concatenate((firsts, [len(tokens)])))
    triples = zip(tokens[firsts].tolist(), lengths.tolist(), (firsts + first_row).tolist(), strict=True)
    return [Span(*triple) for triple in triples]
