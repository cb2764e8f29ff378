"""The plan of a step in Python, slow and simple: the native `StepPlan` must agree with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vitcache.keys.folding import fold_keys
from vitcache.pipeline.items import Chunk, Item
from vitcache.placement.placement import find_overlap
from vitcache.placement.spans import Span, clip_spans

Place = tuple[int, int]  # (chunk, position)


class PlannedItem:
    """One item of the step, with the occurrences of every equal object."""

    def __init__(self, item: Item, namespace: bytes) -> None:
        self.item = item
        self.key: bytes | None = None
        if item.rows is None:
            if item.key is not None:
                [folded] = fold_keys([item.key], namespace)
                self.key = item.key if item.complete_key else folded
            elif item.digest is not None and item.digest[0] == namespace:
                self.key = item.digest[1]
        self.occurrences: list[Place] = []
        self.spans: list[tuple[int, Span]] = []  # with the chunk of each
        self.duplicates: list[Place] = []


def plan(chunks: Sequence[Chunk], namespace: bytes, num_tokens: int | None) -> list[PlannedItem]:
    """Return one planned item per object, in the order of the step. With `num_tokens`, check the batch."""
    if num_tokens is not None:
        _check_batch(chunks, num_tokens)
    planned: dict[int, PlannedItem] = {}
    for number, chunk in enumerate(chunks):
        offset = 0 if num_tokens is None else chunk.token_offset
        spans_of = {
            position: clip_spans(spans, chunk.start, chunk.length)
            for position, spans in _within(chunk).items()
        }
        _check_spans(number, chunk, spans_of)
        for position, spans in spans_of.items():
            item = chunk.items[position]
            entry = planned.setdefault(id(item), PlannedItem(item, namespace))
            entry.occurrences.append((number, position))
            entry.spans += [(number, span._replace(start=span.start + offset)) for span in spans]
    return list(planned.values())


def merge_equal(planned: Sequence[PlannedItem]) -> list[PlannedItem]:
    """Merge the items with equal key, number of rows and width; items without a key are not merged."""
    merged: list[PlannedItem] = []
    by_identity: dict[tuple[bytes, int, int | None], PlannedItem] = {}
    for entry in planned:
        item = entry.item
        identity = None if entry.key is None else (entry.key, item.num_rows, item.row_width)
        original = entry if identity is None else by_identity.setdefault(identity, entry)
        if original is entry:
            merged.append(entry)
        else:
            original.duplicates.append(entry.occurrences[0])
            original.occurrences += entry.occurrences
            original.spans += entry.spans
    return merged


def runs_of(planned: Sequence[PlannedItem]) -> list[tuple[int, int, int, int]]:
    """Return (item, start, length, source_start) of every span, by chunk, then by token."""
    runs = [(chunk, span, item) for item, entry in enumerate(planned) for chunk, span in entry.spans]
    return [(item, *span) for _, span, item in sorted(runs, key=lambda run: (run[0], run[1].start))]


def _within(chunk: Chunk) -> dict[int, list[Span]]:
    start, stop = chunk.start, chunk.start + chunk.length
    spans = sorted(
        (span.start, position, span)
        for position, item in enumerate(chunk.items)
        for span in item.spans
        if span.length
    )
    found: dict[int, list[Span]] = {}
    for _, position, span in spans:
        if start < stop and span.start < stop and span.stop > start:
            found.setdefault(position, []).append(span)
    return found


def _check_batch(chunks: Sequence[Chunk], num_tokens: int) -> None:
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
