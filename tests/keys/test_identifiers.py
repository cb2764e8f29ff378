"""`key_from_id`: different identifiers give different keys, which never change and equal no content key."""

from __future__ import annotations

import hashlib
import itertools
import re
from fractions import Fraction
from typing import Any

import blake3
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcache import Namespace, content_key, key_from_id
from vitcache.keys import digests

ALGORITHMS = ("blake3", "sha256")


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(digests, "ALGORITHM", request.param)
    return request.param


LONG = "x" * 100_000
# Any two identifiers differ, often by very little.
# fmt: off
IDENTIFIERS: list[str | bytes | int] = [
    "", b"", 0, "0", b"0", "00", b"\x00", b"\x00\x00", "\x00", 1, "1", b"1", b"\x01", -1, "-1", b"-1",
    b"\xff", "01", "+1", "1.0", "1e0", " 1", "1 ", "True", "None", "b'1'", "'1'", "a", b"a", "ab", b"ab", "A",
    "a\x00", 127, 128, 255, 256, -127, -128, -129, -255, -256, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 32,
    1 << 63, (1 << 63) - 1, -(1 << 63), -(1 << 63) - 1, 1 << 64, (1 << 64) - 1, -(1 << 64),
    1 << 256, -(1 << 256), 1 << 100_000, (1 << 100_000) + 1, -(1 << 100_000),
    "\u00e9", "e\u0301", "\u00e9".encode(), "\U0001f600", "\uffff", "k", "\u212a",
    bytes(31), bytes(32), bytes(33), content_key(b""), content_key(b"").hex(), content_key(b"").hex().upper(),
    LONG, LONG + "x", LONG[:-1] + "y", LONG.encode(), (LONG + "x").encode(),
]
NAMESPACES: list[bytes] = [b"", b"\x00", b"a", b"ab", b"1", bytes(32), Namespace("m").digest()]
# fmt: on


def test_key_from_id_of_identifiers_with_a_small_difference_differs(algorithm: str) -> None:
    seen: dict[bytes, tuple[Any, bytes]] = {}
    for identifier, namespace in itertools.product(IDENTIFIERS, NAMESPACES):
        key = key_from_id(identifier, namespace=namespace)
        assert type(key) is bytes
        assert len(key) == 32
        assert key not in seen
        seen[key] = (identifier, namespace)


def test_key_from_id_never_equals_a_content_key_or_a_namespace(algorithm: str) -> None:
    keys = {
        key_from_id(identifier, namespace=namespace)
        for identifier, namespace in itertools.product(IDENTIFIERS, NAMESPACES)
    }
    for identifier, namespace in itertools.product(IDENTIFIERS, NAMESPACES):
        if isinstance(identifier, bytes):
            assert content_key(identifier, namespace=namespace) not in keys
        assert content_key(b"", namespace=namespace, extra=identifier) not in keys
    assert not keys & set(NAMESPACES)


def test_key_from_id_differs_between_the_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name in ALGORITHMS:
        monkeypatch.setattr(digests, "ALGORITHM", name)
        found[name] = {key_from_id(identifier) for identifier in IDENTIFIERS}
    assert not found["blake3"] & found["sha256"]


def test_key_from_id_of_equal_identifiers_is_equal() -> None:
    assert (
        key_from_id(np.int64(7)) == key_from_id(np.uint8(7)) == key_from_id(torch.tensor(7)) == key_from_id(7)
    )
    assert key_from_id(np.str_("a")) == key_from_id("a")
    assert key_from_id(np.bytes_(b"a")) == key_from_id(b"a")
    assert key_from_id("a", namespace=Namespace("m")) == key_from_id("a", namespace=Namespace("m").digest())


identifiers = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3) | st.binary(max_size=3) | st.integers()
)


@settings(deadline=None)
@given(identifiers, st.binary(max_size=3), identifiers, st.binary(max_size=3))
def test_key_from_id_depends_on_type_value_and_boundary(
    one: str | bytes | int, space: bytes, two: str | bytes | int, other: bytes
) -> None:
    same = (type(one), one, space) == (type(two), two, other)
    assert (key_from_id(one, namespace=space) == key_from_id(two, namespace=other)) == same


@pytest.mark.parametrize(
    "identifier",
    [
        *(True, False, np.bool_(True), torch.tensor(True), None, 1.0, np.float64(1), Fraction(1)),
        *(["a"], ("a",), {}, bytearray(b"a"), memoryview(b"a"), object(), np.array(["a"]), lambda: "a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_key_from_id_refuses_bools_and_other_types(identifier: Any) -> None:
    match = f"^identifier must be a str, bytes or an int, got {type(identifier).__name__}$"
    with pytest.raises(TypeError, match=match):
        key_from_id(identifier)


@pytest.mark.parametrize("identifier", ["\ud800", "ab\udcff", "\ud83d\ude00"])
def test_key_from_id_of_a_str_with_a_surrogate_names_its_position(identifier: str) -> None:
    position = re.search("[\ud800-\udfff]", identifier).start()  # type: ignore[union-attr]
    match = rf"^identifier cannot be encoded in UTF-8: character {position} is a surrogate, '\\ud"
    with pytest.raises(ValueError, match=match) as caught:
        key_from_id(identifier)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("namespace", ["model", bytearray(b"m"), None, 1, True])
def test_key_from_id_with_a_namespace_of_a_wrong_type_is_a_type_error(namespace: Any) -> None:
    match = f"^namespace must be bytes or a Namespace, got {type(namespace).__name__}$"
    with pytest.raises(TypeError, match=match):
        key_from_id("a", namespace=namespace)


def test_key_from_id_hashes_the_documented_bytes(algorithm: str) -> None:
    def node(tag: bytes, payload: bytes) -> bytes:
        return tag + len(payload).to_bytes(8, "little") + payload

    digest = hashlib.sha256 if algorithm == "sha256" else blake3.blake3
    head = node(b"v", f"vitcache.identifier.1.{algorithm}".encode()) + node(b"b", b"space")
    for identifier, tail in (
        ("é", node(b"s", b"\xc3\xa9")),
        (b"\xff", node(b"b", b"\xff")),
        (-129, node(b"i", (-129).to_bytes(2, "little", signed=True))),
    ):
        assert key_from_id(identifier, namespace=b"space") == digest(head + tail).digest()


GOLDEN: dict[str, dict[str, str]] = {
    "blake3": {
        "str": "f112bf900f2e8dfcde76f15fe0dce2134570696b28060d35d4bdebbcdcd5ff7a",
        "bytes": "cf46bcf3b5444a3b7255895ae8b59125e77a8739d10d1a93974612d28cdd5b17",
        "int": "2dbc0b6852f6460ac9b526198a4d847e417426f97948631dfb426425248367a5",
        "namespace": "e8c78d135eaed2ba74974433548eadbc766b90618d45625aa84095d51283aa3b",
    },
    "sha256": {
        "str": "a9f2c0c412556510a92fab65227824181450da64d3633a410df9144e2b4400d7",
        "bytes": "4b7e5668724aad332f40ceaefbf961c5c089050ead019f49ec894835efc153bb",
        "int": "be920eb36344b62188248835bde3b92c84c47d41fbfd3615fc26b8408055c484",
        "namespace": "49dbbdc08d90b54cc6fbe3c7d30ef6a93f70517fbc685bb0c14cc18a0a2dfbc4",
    },
}


def golden_calls() -> dict[str, bytes]:
    return {
        "str": key_from_id("vitcache"),
        "bytes": key_from_id(b"vitcache"),
        "int": key_from_id(-(1 << 80)),
        "namespace": key_from_id("é", namespace=Namespace("m", "r", "p", "a", "d", "t", 3)),
    }


def test_key_from_id_equals_the_golden_keys(algorithm: str) -> None:
    assert {name: key.hex() for name, key in golden_calls().items()} == GOLDEN[algorithm]
