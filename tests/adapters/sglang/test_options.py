"""`Options`: the environment variable of the operator, read and checked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vitcache.adapters.sglang.options import VARIABLE, Options
from vitcache.cache.policies import POLICIES
from vitcache.ring.pinned_ring import MIN_BYTES
from vitcache.tiers.disk_tier import DiskTier
from vitcache.tiers.mooncake_tier import MooncakeTier


@pytest.mark.parametrize("text", ["", " \n", "{}", " {} "])
def test_text_without_options_gives_the_defaults(text: str) -> None:
    assert Options.from_json(text) == Options()


def test_unset_variable_gives_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Options.from_environment() == Options()


def test_all_options_are_read_from_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {
        "device_bytes": "1.5 GiB",
        "host_bytes": 4096,
        "max_rows_per_encode": 7,
        "policy": "cost",
        "ring_bytes": "1 KiB",
        "trust_engine_hash": True,
        "disk": "/var/cache/images",
        "disk_bytes": "2 TiB",
        "mooncake": "master:50051",
        "mooncake_worth": 1,
        "weights_name": "v1 of 2026",
    }
    monkeypatch.setenv(VARIABLE, json.dumps(values))
    tiers = ("/var/cache/images", 2 << 40, "master:50051", 1.0, "v1 of 2026")
    assert Options.from_environment() == Options(3 << 29, 4096, 7, "cost", 1 << 10, True, *tiers)


def test_zero_bytes_of_host_memory_are_accepted_and_of_the_device_are_not() -> None:
    assert Options.from_json('{"host_bytes": 0}').host_bytes == 0
    with pytest.raises(ValueError, match="device_bytes"):
        Options.from_json('{"device_bytes": 0}')


TOO_LARGE = [2**63, 10**30, "9223372036854775808 B", "99999999999999999999 TiB"]
WRONG_SIZES = [
    -1,
    1.5,
    1e300,
    True,
    None,
    [],
    {},
    "",
    "1",
    "1 gib",
    "-1 GiB",
    "1e3 B",
    "0.3 B",
    "\x00",
    "\uff11 GiB",
]


DISK: dict[str, Any] = {"disk": "/d", "disk_bytes": "1 GiB", "host_bytes": "1 GiB", "weights_name": "v1"}
STORE: dict[str, Any] = {
    "mooncake": "127.0.0.1:50051",
    "mooncake_worth": None,
    "host_bytes": "1 GiB",
    "weights_name": "v1",
}


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("disk", ["host_bytes"]),
        ("disk", ["disk_bytes"]),
        ("disk", ["host_bytes", "disk_bytes"]),
        ("disk_bytes", ["disk"]),
        ("weights_name", ["disk", "disk_bytes"]),
        ("mooncake", ["host_bytes"]),
        ("mooncake_worth", ["mooncake"]),
        ("weights_name", ["mooncake", "mooncake_worth"]),
    ],
)
def test_option_without_one_that_it_needs_is_refused_by_both_names(name: str, left_out: list[str]) -> None:
    options = STORE if "mooncake" in f"{name} {left_out}" else DISK
    values = {each: value for each, value in options.items() if each not in left_out}
    with pytest.raises(ValueError, match=f"'{name}'.*needs.*{left_out[0]}"):
        Options.from_json(json.dumps(values))
    assert Options.from_json(json.dumps(options)).has_tiers


@pytest.mark.parametrize("options", [DISK, STORE], ids=["disk", "mooncake"])
def test_tier_below_a_host_tier_without_bytes_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"'{next(iter(options))}'.*needs 'host_bytes'"):
        Options.from_json(json.dumps(options | {"host_bytes": 0}))


def test_disk_and_store_are_accepted_together() -> None:
    options = Options.from_json(json.dumps(DISK | STORE))
    assert (options.disk, options.mooncake, options.mooncake_worth) == ("/d", "127.0.0.1:50051", None)


@pytest.mark.parametrize("value", ["", "host", "host:", ":1", "host:0", "host:65536", "a b:1", 1, None])
def test_wrong_address_of_a_store_is_refused_by_name(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"\['mooncake'\]"):
        Options.from_json(json.dumps(STORE | {"mooncake": value}))


@pytest.mark.parametrize("value", [0, -0.5, True, "0.5", []])
def test_wrong_worth_of_a_store_is_refused_by_name(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"\['mooncake_worth'\]"):
        Options.from_json(json.dumps(STORE | {"mooncake_worth": value}))


def test_options_have_the_worth_of_the_tier() -> None:
    assert Options().mooncake_worth == MooncakeTier("127.0.0.1:50051").worth


def test_disk_has_at_least_the_bytes_that_its_tier_needs() -> None:
    least = 1 << 20
    assert Options.from_json(json.dumps(DISK | {"disk_bytes": least})).disk_bytes == least
    with pytest.raises(ValueError, match=f"disk_bytes.*at least {least}"):
        Options.from_json(json.dumps(DISK | {"disk_bytes": least - 1}))
    assert DiskTier("/d", least).capacity_bytes == least
    with pytest.raises(ValueError, match=f"at least {least}"):
        DiskTier("/d", least - 1)


@pytest.mark.parametrize("name", ["disk", "weights_name"])
@pytest.mark.parametrize(
    "value", ["", " ", "\x00", "a\x00b", "a\nb", "\ud800", 1, True, None, [], {}], ids=repr
)
def test_wrong_name_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        Options.from_json(json.dumps(DISK | {name: value}))


@pytest.mark.parametrize("name", ["device_bytes", "host_bytes", "ring_bytes", "disk_bytes"])
@pytest.mark.parametrize("value", [*WRONG_SIZES, *TOO_LARGE], ids=repr)
def test_wrong_size_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        Options.from_json(json.dumps({name: value}))


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "4096", [1], 2**63], ids=repr)
def test_wrong_number_of_rows_is_refused_by_name(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="max_rows_per_encode"):
        Options.from_json(json.dumps({"max_rows_per_encode": value}))


def test_ring_smaller_than_a_slot_is_refused_by_name() -> None:
    assert Options.from_json(f'{{"ring_bytes": {MIN_BYTES}}}').ring_bytes == MIN_BYTES
    for value in (0, MIN_BYTES - 1):
        with pytest.raises(ValueError, match=f"ring_bytes.*at least {MIN_BYTES}"):
            Options.from_json(f'{{"ring_bytes": {value}}}')


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_is_accepted(policy: str) -> None:
    assert Options.from_json(json.dumps({"policy": policy})).policy == policy


@pytest.mark.parametrize(
    "value",
    ["", "LRU", "lru ", "fifo", "x" * 9999, 0, 1.0, True, None, [], {}],
    ids=lambda value: repr(value)[:9],
)
def test_wrong_policy_is_refused_by_name(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="policy") as found:
        Options.from_json(json.dumps({"policy": value}))
    assert len(str(found.value)) < 1000
    if isinstance(value, str):
        assert all(repr(policy) in str(found.value) for policy in POLICIES)


@pytest.mark.parametrize("value", [0, 1, "true", "", None, [], {}], ids=repr)
def test_wrong_flag_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match="trust_engine_hash"):
        Options.from_json(json.dumps({"trust_engine_hash": value}))


@pytest.mark.parametrize(
    "text",
    [
        *("{", "}", "device_bytes=1", "{'device_bytes': 1}", '{"device_bytes": 1,}', "{} {}", "\ufeff{}"),
        *("[" * 100_000, '{"host_bytes": ' * 100_000, '{"host_bytes": ' + "9" * 5_000 + "}"),
    ],
    ids=lambda text: text[:20],
)
def test_text_that_is_not_json_is_a_value_error_with_the_variable(text: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE) as found:
        Options.from_json(text)
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize("text", ["[]", "3", "null", '"{}"', "true", "NaN"])
def test_json_that_is_not_an_object_is_a_type_error(text: str) -> None:
    with pytest.raises(TypeError, match=f"{VARIABLE} must be a JSON object"):
        Options.from_json(text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_number_that_json_does_not_have_is_refused_by_the_option(value: str) -> None:
    with pytest.raises((ValueError, TypeError), match="host_bytes"):
        Options.from_json(f'{{"host_bytes": {value}}}')


@pytest.mark.parametrize(
    "name", ["", "Device_bytes", "device_bytes ", "from_json", "__class__", "\ud800", "x" * 9999]
)
def test_unknown_option_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown options .*known options: device_bytes") as found:
        Options.from_json(json.dumps({name: 1}))
    assert len(str(found.value)) < 1000


def test_option_with_two_values_is_refused() -> None:
    with pytest.raises(ValueError, match="two values"):
        Options.from_json('{"host_bytes": 1, "host_bytes": 2}')
