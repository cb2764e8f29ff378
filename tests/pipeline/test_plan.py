"""The plan of a step, and the checks of its chunks."""

from __future__ import annotations

from typing import Any

import pytest

from vitcache import Chunk, Item, Span
from vitcache._native import StepPlan, read_requests
from vitcache.pipeline.items import check_chunks

NUM_TOKENS = 200


def plan(chunks: list[Chunk], num_tokens: int = NUM_TOKENS) -> StepPlan:
    return StepPlan(chunks, read_requests(chunks, Chunk), b"", num_tokens)


def runs(chunks: list[Chunk]) -> list[tuple[int, int, list[Span]]]:
    """Chunk, position in it and spans of every occurrence, in the order of the plan."""
    planned = plan(chunks)
    found: dict[tuple[int, int], list[Span]] = {}
    for item, start, length, source_start in planned.runs():
        for chunk, position in planned.occurrences(item):
            begin = chunks[chunk].token_offset
            if begin <= start < begin + chunks[chunk].length:
                found.setdefault((chunk, position), []).append(Span(start, length, source_start))
    return [(chunk, position, spans) for (chunk, position), spans in found.items()]


def test_plan_clips_spans_to_the_chunk_and_shifts_them_to_the_batch() -> None:
    items = [Item(None, Span(2, 6)), Item(None, Span(20, 4)), Item(None, None)]
    assert runs([Chunk(items, 4, 10, 100)]) == [(0, 0, [Span(100, 4, 2)])]
    assert runs([Chunk(items, 8, 12)]) == []
    assert runs([Chunk(items, 0, 30, 5), Chunk(items, 5, 16, 40)]) == [
        (0, 0, [Span(7, 6)]),
        (0, 1, [Span(25, 4)]),
        (1, 0, [Span(40, 3, 3)]),
        (1, 1, [Span(55, 1)]),
    ]


def test_plan_lists_only_spans_in_the_chunk_by_first_token() -> None:
    video = Item(None, [Span(30, 4, 4), Span(0, 4), Span(60, 4, 8)])
    image = Item(None, Span(10, 3))
    # The image is needed first, so it is first in the plan.
    assert runs([Chunk([video, image], 8, 24)]) == [(0, 1, [Span(2, 3)]), (0, 0, [Span(22, 2, 4)])]
    assert runs([Chunk([video, image], 5, 4)]) == []  # between two parts of the video


def test_plan_has_one_item_per_object_and_one_occurrence_per_chunk() -> None:
    items = [Item(None, Span(0, 2))]
    planned = plan([Chunk(items, 0, 2), Chunk(items, 0, 2, 2)])
    assert (len(planned), planned.occurrences(0)) == (1, [(0, 0), (1, 0)])


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            [[Span(12, 4)], [Span(14, 2)]],
            r"of item 0 covers tokens \[12, 16\) of the prompt, one of item 1 begins at token 14",
        ),
        (
            [[Span(12, 4), Span(15, 4, 4)]],
            r"of item 0 covers tokens \[12, 16\) of the prompt, one of item 0 begins at token 15",
        ),
    ],
)
def test_plan_refuses_overlapping_spans_and_names_tokens_of_the_prompt(spans: Any, message: str) -> None:
    chunks = [Chunk([], 0, 1), Chunk([Item(None, part) for part in spans], 10, 10, 3)]
    with pytest.raises(ValueError, match=f"chunk 1: spans overlap: one {message}"):
        plan(chunks)


@pytest.mark.parametrize("offset", [0, 2**62, 2**63, 2**80])
def test_plan_without_a_batch_ignores_the_token_offset(offset: int) -> None:
    items = [Item(None, Span(12, 4)), Item(None, Span(16, 2))]
    assert plan([Chunk(items, 10, 10, offset)], -1).runs() == [(0, 2, 4, 0), (1, 6, 2, 0)]
    with pytest.raises(
        ValueError,
        match=r"of item 1 covers tokens \[16, 18\) of the prompt, one of item 0 begins at token 17",
    ):
        plan([Chunk([Item(None, Span(17, 4)), Item(None, Span(16, 2))], 10, 10, offset)], -1)


def test_plan_ignores_spans_that_overlap_outside_of_the_chunk() -> None:
    assert len(plan([Chunk([Item(None, Span(50, 4)), Item(None, Span(51, 4))], 0, 10)])) == 0


@pytest.mark.parametrize(
    ("chunks", "error", "message"),
    [
        (
            [Chunk([], 0, 5, 6)],
            IndexError,
            r"chunk 0 covers tokens \[6, 11\) of the batch, which has 10 tokens",
        ),
        (
            [Chunk([], 0, 4, 4), Chunk([], 0, 5, 0)],
            ValueError,
            r"chunk 1 covers tokens \[0, 5\) of the batch, chunk 0 begins at token 4",
        ),
    ],
)
def test_plan_refuses_chunks_that_overlap_or_do_not_fit(
    chunks: list[Chunk], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(chunks, 10)


def test_plan_accepts_an_empty_chunk_inside_another() -> None:
    plan([Chunk([], 0, 5), Chunk([], 0, 0, 3), Chunk([], 0, 5, 5)], 10)


def test_check_chunks_refuses_other_types() -> None:
    chunk = Chunk([], 0, 1)
    check_chunks((chunk,))
    with pytest.raises(TypeError, match="chunks must be a list of Chunk, got Chunk"):
        check_chunks(chunk)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="chunk 1 must be a Chunk, got int"):
        check_chunks([chunk, 1])  # type: ignore[list-item]
