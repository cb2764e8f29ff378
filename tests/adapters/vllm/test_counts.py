"""Counts and the table of counters."""

from __future__ import annotations

from typing import Any

import pytest

from vitcache.adapters.vllm.counts import COUNTERS, LOWER_TIERS, Counts, add_counts
from vitcache.adapters.vllm.tier_settings import TierSettings


def test_every_counter_of_a_family_has_the_same_text_unit_and_label_names() -> None:
    families: dict[str, set[Any]] = {}
    for counter in COUNTERS.values():
        about = (counter.text, counter.unit, tuple(dict(counter.labels)))
        families.setdefault(counter.family, set()).add(about)
    assert {family: len(found) for family, found in families.items() if len(found) != 1} == {}


def test_name_of_a_counter_is_its_family_and_the_values_of_its_labels() -> None:
    for name, counter in COUNTERS.items():
        assert name == "_".join([counter.family, *dict(counter.labels).values()])
        assert counter.text.endswith(".")


def test_tiers_of_the_counters_are_those_of_the_settings() -> None:
    settings = TierSettings("a", "", 0.1, "/rows", 1 << 20, "127.0.0.1:1")
    assert tuple(tier.name for tier in settings.make()) == LOWER_TIERS


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
