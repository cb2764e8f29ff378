"""Spans: conversion from each engine's notation, and clipping to a chunk window."""

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcache import Span, clip_spans, spans_from_inclusive, spans_from_placeholder, spans_from_token_ids


def test_span_is_an_immutable_triple_of_plain_ints():
    span = Span(np.int64(3), torch.tensor(4))
    assert span == Span(3, 4, 0) == (3, 4, 0)
    assert all(type(value) is int for value in span)
    assert span.stop == 7
    assert pickle.loads(pickle.dumps(span)) == span
    with pytest.raises(AttributeError):
        span.start = 5


@pytest.mark.parametrize("name", ["start", "length", "source_start"])
def test_span_refuses_negatives_by_name(name):
    fields = {"start": 1, "length": 2, "source_start": 3, name: -4}
    with pytest.raises(ValueError, match=rf"Span.{name} is -4, it must be at least 0"):
        Span(**fields)


def test_span_made_by_replace_or_make_is_checked():
    with pytest.raises(ValueError, match=r"Span.length is -1"):
        Span(1, 2)._replace(length=-1)
    with pytest.raises(TypeError):
        Span._make(["a", 2, 3])
    assert Span(1, 2)._replace(start=4) == Span(4, 2)


NOT_INTEGERS = [1.0, "1", None, np.float32(1), [1]]
BOOLS = [True, False, np.bool_(True), np.array(False), torch.tensor(True)]


@pytest.mark.parametrize("name", ["start", "length", "source_start"])
@pytest.mark.parametrize("value", [*NOT_INTEGERS, *BOOLS], ids=repr)
def test_span_refuses_values_that_are_not_integers_and_bools(value, name):
    match = re.escape(f"Span.{name} must be an int, got {value!r} of type {type(value).__name__}")
    with pytest.raises(TypeError, match=match):
        Span(**{"start": 1, "length": 2, "source_start": 3, name: value})
    with pytest.raises(TypeError, match=match):
        Span(1, 2)._replace(**{name: value})


@pytest.mark.parametrize("value", [*NOT_INTEGERS, *BOOLS], ids=repr)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("a token of offset 1", lambda value: spans_from_inclusive([(0, 1), (value, 4)])),
        ("a token of offset 0", lambda value: spans_from_inclusive([(0, value)])),
        ("offset", lambda value: spans_from_placeholder(value, 3)),
        ("length", lambda value: spans_from_placeholder(3, value)),
        ("token_id", lambda value: spans_from_token_ids([9, 1], value, [1])),
        ("num_rows[1]", lambda value: spans_from_token_ids([9, 1], 9, [1, value])),
        ("start", lambda value: clip_spans([], value, 1)),
        ("length", lambda value: clip_spans([], 1, value)),
    ],
)
def test_span_functions_name_the_argument_that_is_not_an_integer_or_a_bool(name, call, value):
    match = re.escape(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    with pytest.raises(TypeError, match=f"^{match}"):
        call(value)


@pytest.mark.parametrize("ids", [[True, False], np.zeros(2, bool), torch.ones(2), ["9", "1"]], ids=repr)
def test_spans_from_token_ids_refuses_ids_that_are_not_integers(ids):
    with pytest.raises(TypeError, match=r"input_ids must be (integers, got (bool|float32)|an int, got '9')"):
        spans_from_token_ids(ids, 9, [1])


def test_span_functions_name_the_argument_that_is_negative():
    for name, call in (
        ("offset", lambda: spans_from_placeholder(-1, 3)),
        ("length", lambda: spans_from_placeholder(3, -1)),
        ("Span.start", lambda: spans_from_inclusive([(-1, 3)])),
        ("Span.length", lambda: clip_spans([], 0, -1)),
    ):
        with pytest.raises(ValueError, match=f"^{name} is -1, it must be at least 0"):
            call()


def test_spans_from_token_ids_accepts_a_negative_id_and_no_tokens():
    assert spans_from_token_ids([-200, 5], -200, [1]) == [[Span(0, 1)]]
    assert spans_from_token_ids([], 9, []) == []
    assert spans_from_token_ids(np.array([9, 9], np.int32), 9, np.array([1, 1])) == [
        [Span(0, 1)],
        [Span(1, 1)],
    ]


def test_spans_from_inclusive_assigns_rows_in_order():
    assert spans_from_inclusive([(2, 5), (9, 9), (14, 20)]) == [Span(2, 4, 0), Span(9, 1, 4), Span(14, 7, 5)]
    assert spans_from_inclusive([]) == []


def test_spans_from_inclusive_of_an_item_without_offsets_is_empty():
    assert spans_from_inclusive(None) == []
    for offsets in (3, [3], [None]):
        with pytest.raises(TypeError):
            spans_from_inclusive(offsets)


def test_spans_from_inclusive_refuses_an_offset_that_is_not_a_pair():
    for offset in ((1, 2, 3), (1,), ()):
        message = f"offset 1 has {len(offset)} tokens, it must have 2: first and last"
        with pytest.raises(ValueError, match=message):
            spans_from_inclusive([(0, 1), offset])


def test_spans_from_inclusive_of_uint8_does_not_wrap():
    assert spans_from_inclusive(np.array([[0, 255]], np.uint8)) == [Span(0, 256)]


def test_clip_spans_refuses_other_types():
    with pytest.raises(TypeError, match="every span must be a Span, got int"):
        clip_spans(Span(1, 2), 0, 4)
    with pytest.raises(TypeError, match="every span must be a Span, got tuple"):
        clip_spans([(1, 2, 0)], 0, 4)


def test_spans_from_inclusive_refuses_an_end_before_the_start():
    with pytest.raises(ValueError, match=r"offset 1 ends at token 3, before its first token 4"):
        spans_from_inclusive([(0, 1), (4, 3)])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_spans_from_placeholder_with_mask_is_one_span_per_run(kind):
    mask = kind([False, True, True, False, True])
    assert spans_from_placeholder(10, 5, mask) == [Span(11, 2, 0), Span(14, 1, 2)]


def test_spans_from_placeholder_without_mask_is_one_span():
    assert spans_from_placeholder(10, 5) == [Span(10, 5)]
    assert spans_from_placeholder(10, 3, [False] * 3) == []
    assert spans_from_placeholder(10, 0, []) == []


def test_spans_from_placeholder_refuses_a_mask_of_wrong_length_or_dtype():
    with pytest.raises(ValueError, match=r"is_embed has shape \(2,\), the placeholder has 3 tokens"):
        spans_from_placeholder(0, 3, [True, False])
    with pytest.raises(TypeError, match=r"is_embed must be boolean, got int64"):
        spans_from_placeholder(0, 2, [1, 0])


def test_spans_from_token_ids_assigns_tokens_in_prompt_order():
    ids = [7, 9, 9, 9, 1, 9, 9, 2, 9]
    assert spans_from_token_ids(ids, 9, [3, 1, 2]) == [
        [Span(1, 3)],
        [Span(5, 1)],
        [Span(6, 1), Span(8, 1, 1)],
    ]
    assert spans_from_token_ids(torch.tensor(ids).reshape(3, 3), 9, [6]) == [
        [Span(1, 3, 0), Span(5, 2, 3), Span(8, 1, 5)]
    ]


def test_spans_from_token_ids_wrong_number_of_rows_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"the prompt has 2 tokens with id 9, the 2 items have 3 rows"):
        spans_from_token_ids([9, 1, 9], 9, [1, 2])
    with pytest.raises(ValueError, match=r"num_rows\[1\] is -1"):
        spans_from_token_ids([9, 1, 9], 9, [3, -1])


def test_clip_spans_rebases_tokens_and_increases_source_start():
    spans = [Span(0, 4), Span(6, 6, 10), Span(20, 2)]
    assert clip_spans(spans, 2, 8) == [Span(0, 2, 2), Span(4, 4, 10)]
    assert clip_spans(spans, 8, 3) == [Span(0, 3, 12)]
    assert clip_spans(spans, 4, 2) == clip_spans(spans, 7, 0) == []
    with pytest.raises(ValueError, match=r"Span.start is -1"):
        clip_spans(spans, -1, 4)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12), st.integers(0, 5)), max_size=6),
    st.integers(0, 50),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_clip_spans_of_adjacent_chunks_equals_the_whole(triples, start, lengths):
    spans = [Span(*triple) for triple in triples]
    whole = [
        (token, row)
        for s in spans
        for token, row in zip(range(s.start, s.stop), range(s.source_start, 99), strict=False)
    ]
    chunked = []
    for length in lengths:
        for s in clip_spans(spans, start, length):
            assert s.stop <= length
            chunked += [(start + s.start + i, s.source_start + i) for i in range(s.length)]
        start += length
    first = start - sum(lengths)
    assert sorted(chunked) == sorted((token, row) for token, row in whole if first <= token < start)
