"""The plan of a step: which rows of which items its windows need, and which of these are the same item."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from vitcache.pipeline.items import Chunk, Item
from vitcache.placement.placement import find_overlap
from vitcache.placement.spans import Span, clip_spans


class Occurrence(NamedTuple):
    """An item that overlaps its window: where it is in the call, and its spans in tokens of the batch."""

    chunk: int
    position: int
    item: Item
    spans: list[Span]


def plan(chunks: Sequence[Chunk]) -> list[Occurrence]:
    """Return what the windows need, in the order of the batch's tokens within each chunk.

    Raises
    ------
    ValueError
        If two spans overlap within a window.
    """
    occurrences: list[Occurrence] = []
    for number, chunk in enumerate(chunks):
        within = {
            position: clip_spans(spans, chunk.start, chunk.length)
            for position, spans in chunk.items.within(chunk.start, chunk.start + chunk.length).items()
        }
        _check_spans(number, chunk, within)
        occurrences += (
            Occurrence(number, position, chunk.items[position], _to_batch(chunk, spans))
            for position, spans in within.items()
        )
    return occurrences


def check_chunks(chunks: Sequence[Chunk]) -> None:
    """Raise TypeError if `chunks` is no list of chunks."""
    if not isinstance(chunks, list | tuple):
        raise TypeError(f"chunks must be a list of Chunk, it is {type(chunks).__name__}")
    for number, chunk in enumerate(chunks):
        if not isinstance(chunk, Chunk):
            raise TypeError(f"chunk {number} must be a Chunk, it is {type(chunk).__name__}")


def check_windows(chunks: Sequence[Chunk], num_tokens: int) -> None:
    """Check where the windows are in the batch.

    Raises
    ------
    IndexError
        If one ends behind the batch's tokens.
    ValueError
        If two overlap.
    """
    for number, chunk in enumerate(chunks):
        end = chunk.token_offset + chunk.length
        if end > num_tokens:
            raise IndexError(f"chunk {number} ends at token {end} of the batch, which has {num_tokens}")
    order = sorted((chunk.token_offset, number) for number, chunk in enumerate(chunks) if chunk.length)
    for (offset, number), (other_offset, other) in pairwise(order):
        end = offset + chunks[number].length
        if end > other_offset:
            raise ValueError(
                f"chunk {number} ends at token {end} of the batch, chunk {other} begins at {other_offset}"
            )


def _to_batch(chunk: Chunk, spans: list[Span]) -> list[Span]:
    """Spans in tokens of the window in those of the batch."""
    return [span._replace(start=span.start + chunk.token_offset) for span in spans]


def _check_spans(number: int, chunk: Chunk, within: dict[int, list[Span]]) -> None:
    overlap = find_overlap(list(within.values()))
    if overlap is not None:
        (first, start, length, _), (second, other_start, *_) = overlap
        one, other = (list(within)[number] for number in (first, second))
        end = chunk.start + start + length
        raise ValueError(
            f"chunk {number}: a span of item {one} ends at token {end} of the prompt, one of item {other} "
            f"begins at {chunk.start + other_start}"
        )
