"""Counts and the table of counters."""

from __future__ import annotations

from typing import Any

import pytest

from vitcache.adapters.vllm.counts import COUNTERS, Counts, add_counts


def test_every_counter_of_a_family_has_the_same_text_unit_and_label_name() -> None:
    families: dict[str, set[Any]] = {}
    for counter in COUNTERS.values():
        about = (counter.text, counter.unit, counter.label and counter.label[0])
        families.setdefault(counter.family, set()).add(about)
    assert {family: len(found) for family, found in families.items() if len(found) != 1} == {}


def test_name_of_a_counter_is_its_family_and_the_value_of_its_label() -> None:
    for name, counter in COUNTERS.items():
        assert name == "_".join([counter.family, *([counter.label[1]] if counter.label else [])])
        assert counter.text.endswith(".")


def test_take_returns_the_sums_since_the_last_call() -> None:
    counts = Counts()
    counts.add("hits_host")
    counts.add_all({"hits_host": 2, "saved_seconds_host": 1.5, "stores": 0})
    assert counts.take() == {"hits_host": 3.0, "saved_seconds_host": 1.5}
    assert counts.take() == {}


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"stores": 1, "hit": 1}, KeyError, "'hit' is not a counter; counters: hits_device"),
        ({"stores": 1, "encodes": -1}, ValueError, "encodes is -1, it must be at least 0"),
        ({"stores": 1, "encode_seconds": float("nan")}, ValueError, "encode_seconds is nan"),
    ],
)
def test_add_all_refuses_wrong_values_and_adds_nothing(
    values: dict[str, float], error: type[Exception], message: str
) -> None:
    counts = Counts()
    with pytest.raises(error, match=message):
        counts.add_all(values)
    assert counts.take() == {}


def test_add_counts_makes_floats_of_ints() -> None:
    totals: dict[str, float] = {}
    add_counts(totals, {"stores": 2})
    assert [type(value) for value in totals.values()] == [float]
