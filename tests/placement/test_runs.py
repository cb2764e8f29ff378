"""Runs made in Python, for traced calls, equal the runs that native code makes from the same spans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vitcache import Span
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.runs import check_lists, list_runs, span_array

HIDDEN = 4


@pytest.mark.parametrize(
    "spans",
    [
        [3, 8, 12],
        [Span(3, 1, 1), Span(8, 3), Span(12, 2, 2)],
        [[Span(0, 1), Span(5, 1, 1)], [], (Span(9, 2, 1),)],
        [np.int64(3), [Span(8, 0)], 12],
    ],
    ids=["ints", "spans", "lists", "mixed"],
)
def test_list_runs_equals_the_native_runs(spans: list[Any]) -> None:
    items = [torch.zeros(rows, HIDDEN) for rows in (2, 3, 4)]
    placement = Placement(Destination("out", torch.zeros(32, HIDDEN), None), items, spans)
    assert list_runs(spans, [len(rows) for rows in items]) == placement.runs()


@pytest.mark.parametrize("spans", [[1.5], ["3"], [None], [[3]], [[(3, 1, 0)]]])
def test_list_runs_bad_span_is_a_type_error_that_names_the_item(spans: list[Any]) -> None:
    with pytest.raises(TypeError, match=r"^item 0: (every span|spans) must be "):
        list_runs(spans, [1])


def test_span_array_takes_int64_arrays_and_refuses_the_rest() -> None:
    table = np.arange(12).reshape(4, 3)
    assert np.array_equal(span_array(table[:, ::-1], 3), table[:, ::-1])
    assert span_array(table[:, ::-1], 3).flags.c_contiguous
    assert np.array_equal(span_array(torch.from_numpy(table), 3), table)
    with pytest.raises(TypeError, match="spans must be int64, they are int32"):
        span_array(table.astype(np.int32), 3)
    with pytest.raises(ValueError, match=r"spans have shape \(4, 2\), it must be \(n, 3\)"):
        span_array(table[:, :2], 3)
    with pytest.raises(TypeError, match="must be an int64 array"):
        span_array([[1, 2, 3]], 3)


def test_check_lists_refuses_unequal_lengths_and_other_types() -> None:
    check_lists([1, 2], (3, 4))
    with pytest.raises(ValueError, match="got 2 embeddings and 1 entries of spans"):
        check_lists([1, 2], [3])
    with pytest.raises(TypeError, match="spans must be a list with one entry per item, got Span"):
        check_lists([1], Span(0, 1))
