"""Shadow mode: which hits are encoded again, and what is reported of them."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcache import Shadow

KEY = bytes(32)


def compare(cached: Tensor, fresh: Tensor) -> float:
    """What is reported of a comparison."""
    reports: list[tuple[bytes, float]] = []
    shadow = Shadow(1, lambda *report: reports.append(report))
    difference = shadow.compare(KEY, cached, fresh)
    assert reports == [(KEY, difference)]
    return difference


def test_one_hit_in_so_many_is_wanted() -> None:
    shadow = Shadow(3, print)
    assert [shadow.wants() for _ in range(7)] == [False, False, True, False, False, True, False]
    assert all(Shadow(1, print).wants() for _ in range(3))


def test_threads_share_the_count() -> None:
    shadow, wanted = Shadow(10, print), []

    def hit() -> None:
        wanted.extend(shadow.wants() for _ in range(500))

    threads = [threading.Thread(target=hit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wanted) == 200


@pytest.mark.parametrize(("every", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)])
def test_a_wrong_number_of_hits_is_an_error(every: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"every .*{every}"):
        Shadow(every, print)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_largest_difference_is_reported_as_the_cache_would_round_it(dtype: torch.dtype) -> None:
    fresh = torch.randn(5, 7)
    cached = fresh.to(dtype, copy=True)
    assert compare(cached, fresh) == 0.0
    cached[3, 2] = 2.0
    fresh[3, 2] = -1.5
    assert compare(cached, fresh) == 3.5


def test_rows_that_are_not_finite_differ_unless_they_are_the_same() -> None:
    cached = torch.tensor([[math.nan, math.inf, -math.inf, 1.0]])
    assert compare(cached, cached.clone()) == 0.0
    for column, value in ((0, 1.0), (1, -math.inf), (2, 1.0), (3, math.nan)):
        fresh = cached.clone()
        fresh[0, column] = value
        assert compare(cached, fresh) == math.inf


def test_other_shapes_are_infinitely_far_and_no_rows_are_not() -> None:
    assert compare(torch.zeros(2, 3), torch.zeros(3, 3)) == math.inf
    assert compare(torch.zeros(2, 3), torch.zeros(2, 4)) == math.inf
    assert compare(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0
