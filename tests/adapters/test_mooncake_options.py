"""The options of a Mooncake store, which both plug-ins check alike."""

from __future__ import annotations

from typing import Any

import pytest

from vitcache.adapters.mooncake_options import to_address, to_worth


@pytest.mark.parametrize("value", ["10.0.0.7:50051", "mooncake-master:1", "a.b.c:65535", "[fd00::1]:50051"])
def test_address_of_a_host_and_a_port_is_accepted(value: str) -> None:
    assert to_address("an option", value) == value


@pytest.mark.parametrize(
    "value",
    ["", "host", ":50051", "host:", "host:0", "host:65536", "host:x", "http://host:1", "a b:1", "fd00::1:1"],
)
def test_text_that_is_no_address_is_refused_by_the_name_of_the_option(value: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"^an option is .*(it must be .host:port. with a|, its) port (must be )?from 1 to 65535",
    ):
        to_address("an option", value)


@pytest.mark.parametrize("value", [None, 1, b"host:1", ["host:1"]])
def test_address_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^an option must be a str"):
        to_address("an option", value)


@pytest.mark.parametrize("value", [None, 0.5, 1, 1e-9])
def test_worth_is_a_positive_number_or_none(value: float | None) -> None:
    assert to_worth("an option", value) == value


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_worth_that_is_not_positive_and_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"^an option is .*above 0"):
        to_worth("an option", value)


@pytest.mark.parametrize("value", [True, "0.5", [], 1j])
def test_worth_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^an option must be a number"):
        to_worth("an option", value)
