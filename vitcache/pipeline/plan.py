"""The plan of a step: which items overlap its chunks, with which spans."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from vitcache.pipeline.items import Chunk, Item
from vitcache.placement.placement import find_overlap
from vitcache.placement.spans import Span, clip_spans


class Occurrence(NamedTuple):
    """One item that overlaps one chunk.

    Attributes
    ----------
    chunk, position
        Indices: `item` is ``chunks[chunk].items[position]``.
    item
        The item.
    spans
        The parts of the item's spans that are in the chunk, counted in tokens of the batch.
    """

    chunk: int
    position: int
    item: Item
    spans: list[Span]


def plan(chunks: Sequence[Chunk]) -> list[Occurrence]:
    """Return every occurrence of an item in a chunk: by chunk, then by the item's first token in it.

    Raises
    ------
    ValueError
        If two spans overlap within a chunk.
    """
    occurrences: list[Occurrence] = []
    for number, chunk in enumerate(chunks):
        spans_of = {
            position: clip_spans(spans, chunk.start, chunk.length)
            for position, spans in chunk.items.within(chunk.start, chunk.start + chunk.length).items()
        }
        _check_spans(number, chunk, spans_of)
        occurrences += (
            Occurrence(number, position, chunk.items[position], _to_batch(chunk, spans))
            for position, spans in spans_of.items()
        )
    return occurrences


def check_chunks(chunks: Sequence[Chunk]) -> None:
    """Raise TypeError if `chunks` is not a list or tuple of `Chunk`."""
    if not isinstance(chunks, list | tuple):
        raise TypeError(f"chunks must be a list of Chunk, got {type(chunks).__name__}")
    for number, chunk in enumerate(chunks):
        if not isinstance(chunk, Chunk):
            raise TypeError(f"chunk {number} must be a Chunk, got {type(chunk).__name__}")


def check_batch(chunks: Sequence[Chunk], num_tokens: int) -> None:
    """Check that the chunks fit in the `num_tokens` tokens of the batch and do not overlap there.

    Raises
    ------
    IndexError
        If a chunk ends after the last token.
    ValueError
        If two chunks overlap.
    """
    for number, chunk in enumerate(chunks):
        end = chunk.token_offset + chunk.length
        if end > num_tokens:
            raise IndexError(
                f"chunk {number} covers tokens [{chunk.token_offset}, {end}) of the batch, which has "
                f"{num_tokens} tokens"
            )
    order = sorted((chunk.token_offset, number) for number, chunk in enumerate(chunks) if chunk.length)
    for (offset, number), (next_offset, next_number) in pairwise(order):
        end = offset + chunks[number].length
        if end > next_offset:
            raise ValueError(
                f"chunks overlap: chunk {number} covers tokens [{offset}, {end}) of the batch, chunk "
                f"{next_number} begins at token {next_offset}"
            )


def _to_batch(chunk: Chunk, spans: list[Span]) -> list[Span]:
    """Turn spans in tokens of the chunk into spans in tokens of the batch."""
    return [span._replace(start=span.start + chunk.token_offset) for span in spans]


def _check_spans(number: int, chunk: Chunk, spans_of: dict[int, list[Span]]) -> None:
    overlap = find_overlap(list(spans_of.values()))
    if overlap is not None:
        (first, first_start, length, _), (second, second_start, *_) = overlap
        positions = list(spans_of)
        begin, end = chunk.start + first_start, chunk.start + first_start + length
        raise ValueError(
            f"chunk {number}: spans overlap: one of item {positions[first]} covers tokens [{begin}, {end}) "
            f"of the prompt, one of item {positions[second]} begins at token {chunk.start + second_start}"
        )
