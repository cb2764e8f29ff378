"""Test parameters in which every pair of values occurs, in place of every combination."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(**values: Iterable[Any]) -> pytest.MarkDecorator:
    """Return a `pytest.mark.parametrize` over the cases of `all_pairs`, with readable ids."""
    cases = [tuple(case.values()) for case in all_pairs(**values)]
    return pytest.mark.parametrize(tuple(values), cases, ids=["-".join(map(_text, case)) for case in cases])


def all_pairs(**values: Iterable[Any]) -> list[dict[str, Any]]:
    """Return cases, each with one value of each name, in which every pair of values of two names occurs.

    Greedy and deterministic: the next case is the first combination with the most pairs that no earlier case
    has. The number of cases is near the product of the two longest lists.
    """
    lists = {name: list(options) for name, options in values.items()}
    # A pair contains positions instead of values, so that values need not be hashable.
    combos = list(product(*([(name, index) for index in range(len(lists[name]))] for name in lists)))
    order = min(len(lists), 2)
    missing = {pair for combo in combos for pair in combinations(combo, order)}
    cases = []
    while missing:
        combo = max(combos, key=lambda combo: sum(pair in missing for pair in combinations(combo, order)))
        missing.difference_update(combinations(combo, order))
        cases.append({name: lists[name][index] for name, index in combo})
    return cases


def _text(value: Any) -> str:
    return getattr(value, "__name__", str(value).removeprefix("torch."))
