"""`pairwise` covers every pair of values with few cases."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
import torch
from pairwise import pairwise


@pytest.mark.parametrize(
    "lengths", [(1,), (3,), (2, 3), (3, 5, 3), (4, 2, 2, 3, 2), (2,) * 7, (1, 4, 1)], ids=str
)
def test_pairwise_has_every_pair_of_values_and_no_case_twice(lengths: tuple[int, ...]) -> None:
    values = {f"argument{number}": range(length) for number, length in enumerate(lengths)}
    names, cases = pairwise(**values).mark.args
    assert names == tuple(values)
    assert len(set(map(tuple, cases))) == len(cases)
    for a, b in combinations(range(len(lengths)), 2):
        pairs = product(range(lengths[a]), range(lengths[b]))
        assert {(case[a], case[b]) for case in cases} == set(pairs)
    longest = sorted(lengths)[-2:]
    assert len(cases) <= 2 * max(1, longest[0] * longest[-1])


def test_pairwise_ids_are_readable_and_values_need_not_be_hashable() -> None:
    def case(**values: Any) -> list[str]:
        ids: list[str] = pairwise(**values).mark.kwargs["ids"]
        return ids

    assert case(dtype=[torch.float32], kind=[list], shape=[[2, 3]]) == ["float32-list-[2, 3]"]
    assert case(source=[torch.float32, torch.int8], scale=[None]) == ["float32-None", "int8-None"]


def test_pairwise_gives_the_same_cases_each_time() -> None:
    values = {"a": range(4), "b": "xyz", "c": (True, False)}
    assert pairwise(**values).mark == pairwise(**values).mark
