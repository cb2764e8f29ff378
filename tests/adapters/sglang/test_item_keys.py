"""`item_key`: equal for equal content, and different if the rows can differ."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

import numpy as np
import pytest
import torch
from sglang_fakes.requests import DataItem, Modality, feature

from vitcache.adapters.sglang.item_keys import ItemKey, is_feature, is_hashable, item_key
from vitcache.adapters.sglang.tenant import NO_TENANT
from vitcache.keys.content import content_key


class Mode(Enum):
    FAST = 1
    SLOW = 2


class Other(Enum):
    FAST = 1


class Level(IntEnum):
    LOW = 1


def item(**values: Any) -> DataItem:
    return DataItem(**{"feature": torch.arange(6.0).reshape(2, 3)} | values)


def key(source: DataItem, rows: int = 2, tenant: Any = NO_TENANT, trust: bool = False) -> bytes:
    """The key that the pipeline finds for an item, without a namespace."""
    found = item_key(source, rows, tenant, trust)
    return found.key or content_key(source.feature, extra=found.arguments)


def test_equal_items_of_two_requests_have_one_key() -> None:
    data = {"scale": 0.5, "mode": Mode.FAST, "names": ["a", None, {"b": (1,)}]}
    one, two = (item(grid=torch.tensor([[1, 4, 6]]), **data) for _ in range(2))
    assert key(one) == key(two)
    assert key(item()) == key(item(feature=np.arange(6, dtype=np.float32).reshape(2, 3)))


DIFFERENT = {
    "modality": item(modality=Modality.VIDEO),
    "values": item(feature=torch.zeros(2, 3)),
    "shape": item(feature=torch.arange(6.0).reshape(3, 2)),
    "one more dimension": item(feature=torch.arange(6.0).reshape(1, 2, 3)),
    "dtype": item(feature=torch.arange(6).reshape(2, 3).to(torch.float64)),
    "bfloat16": item(feature=torch.arange(6.0).reshape(2, 3).bfloat16()),
    "list": item(feature=[torch.arange(6.0).reshape(2, 3)]),
    "grid": item(grid=[1, 2, 3]),
    "another grid": item(grid=[1, 3, 2]),
    "grid as an array": item(grid=np.array([1, 2, 3])),
    "name": item(size=[1, 2, 3]),
    "bool": item(flag=True),
    "int": item(flag=1),
    "float": item(flag=1.0),
    "text": item(flag="1"),
    "none": item(flag=None),
    "enum": item(flag=Mode.FAST),
    "member": item(flag=Mode.SLOW),
    "enum class": item(flag=Other.FAST),
    "int enum": item(flag=Level.LOW),
    "empty dict": item(flag={}),
    "nested": item(flag={"a": {"b": 1}}),
    "nested value": item(flag={"a": {"b": 2}}),
    "identity": item(identity=bytes(32)),
    "another identity": item(identity=bytes(31) + b"\1"),
    "identity and grid": item(identity=bytes(32), grid=[1, 2, 3]),
    "identity and modality": item(identity=bytes(32), modality=Modality.AUDIO),
}


def test_items_whose_rows_can_differ_have_different_keys() -> None:
    keys = {name: key(source) for name, source in DIFFERENT.items()}
    keys["plain"] = key(item())
    keys["rows"] = key(item(), rows=3)
    keys["salt"] = key(item(), tenant=("a", ""))
    keys["extra key"] = key(item(), tenant=("", "a"))
    keys["both"] = key(item(), tenant=("a", "a"))
    keys["joined"] = key(item(), tenant=("aa", ""))
    assert len(set(keys.values())) == len(keys)


class Format(Enum):
    NORMAL = 1
    PRECOMPUTED_EMBEDDING = 3


def test_format_of_a_feature_is_part_of_the_key() -> None:
    """Some encoders return features of the format PRECOMPUTED_EMBEDDING unchanged."""
    for values in ({}, {"identity": bytes(32)}):
        one, two = (item(**values) for _ in range(2))
        one.__dict__["format"], two.__dict__["format"] = Format.NORMAL, Format.PRECOMPUTED_EMBEDDING
        assert key(one) != key(two)


@pytest.mark.parametrize("values", [{}, {"identity": bytes(32)}, {"hash": 7}])
def test_part_of_a_video_that_ranks_have_decoded_together_names_no_rows(values: dict[str, Any]) -> None:
    part = item(dp_decode_sharded=True, modality=Modality.VIDEO, **values)
    found = [item_key(part, 2, NO_TENANT, trust) for trust in (False, True)]
    assert not any(each.is_shared for each in found)
    assert item_key(item(dp_decode_sharded=False), 2, NO_TENANT, False).is_shared


def test_identity_stands_for_the_feature() -> None:
    named = item(identity=bytes(range(32)))
    assert key(named) == key(item(identity=bytes(range(32)), feature=None))
    assert key(named) == key(item(identity=bytes(range(32)), feature=object()))
    assert key(named, tenant=("a", "")) != key(named)
    assert key(named, rows=3) != key(named)


def test_identity_names_an_item_whose_data_cannot_be_hashed() -> None:
    found = item_key(item(identity=bytes(32), proxy=object()), 2, NO_TENANT, False)
    assert found.is_shared
    assert found.key == key(item(identity=bytes(32), proxy=object()))


def test_engine_hash_names_an_item_only_if_it_is_trusted() -> None:
    one, two = item(hash=7), item(hash=7, feature=torch.zeros(2, 3))
    assert key(one) != key(two)
    assert key(one, trust=True) == key(two, trust=True)
    assert key(one, trust=True) != key(item(hash=8), trust=True)
    assert key(one, trust=True) != key(item(hash=7, grid=[1]), trust=True)
    assert key(one, trust=True) != key(item(hash=7, modality=Modality.AUDIO), trust=True)
    assert key(one, rows=3, trust=True) != key(one, trust=True)
    assert key(one, tenant=("a", ""), trust=True) != key(one, trust=True)
    assert key(one) == key(item(hash=8))


def test_trusted_hash_of_an_item_without_one_leaves_the_content() -> None:
    assert key(item(), trust=True) == key(item())


def test_identity_precedes_the_trusted_hash() -> None:
    one, two = item(identity=bytes(32), hash=1), item(identity=bytes(32), hash=2)
    assert key(one, trust=True) == key(two, trust=True)


@pytest.mark.parametrize("number", [0, 1, 2**63, 2**64 - 1])
def test_each_hash_of_64_bits_is_accepted(number: int) -> None:
    assert item_key(item(hash=number), 2, NO_TENANT, True).is_shared


def test_state_of_transports_is_no_part_of_the_key() -> None:
    assert key(item(_sglang_event=object(), _sglang_borrow=True)) == key(item())


def test_numbers_of_numpy_are_those_of_python() -> None:
    values = {"size": np.int64(3), "scale": np.float32(0.5), "flag": np.bool_(True), "parts": [np.int8(1)]}
    plain = {"size": 3, "scale": 0.5, "flag": True, "parts": [1]}
    assert key(item(**values)) == key(item(**plain))


def test_order_of_data_does_not_change_the_key() -> None:
    assert key(item(a=1, b={"c": 1, "d": 2})) == key(item(b={"d": 2, "c": 1}, a=1))


class Subclass(torch.Tensor):
    """A tensor that can have attributes of its own."""


UNHASHABLE_FEATURES = {
    "none": None,
    "object": object(),
    "text": "image.png",
    "number": 3,
    "set": {1},
    "dict": {"pixels": torch.zeros(2)},
    "callable": feature,
    "empty list": [],
    "list with none": [torch.zeros(2), None],
    "object array": np.array([object()]),
    "text array": np.array(["a"]),
    "structured array": np.zeros(2, dtype=[("x", "f4")]),
    "dates": np.zeros(2, dtype="M8[s]"),
    "long double": np.zeros(2, dtype=np.longdouble),
    "masked array": np.ma.masked_array([1.0, 2.0], [True, False]),
    "subclass": torch.zeros(2).as_subclass(Subclass),
    "sparse": torch.eye(3).to_sparse(),
    "compressed": torch.eye(3).to_sparse_csr(),
    "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
    "meta": torch.zeros(2, device="meta"),
}


@pytest.mark.parametrize("value", UNHASHABLE_FEATURES.values(), ids=UNHASHABLE_FEATURES)
def test_feature_that_cannot_be_hashed_has_a_key_of_this_item_alone(value: Any) -> None:
    first, second = (item_key(item(feature=value), 2, NO_TENANT, False) for _ in range(2))
    assert (first.is_shared, second.is_shared) == (False, False)
    assert first.key is not None
    assert len(first.key) == 32
    assert first.key != second.key


@pytest.mark.parametrize("value", UNHASHABLE_FEATURES.values(), ids=UNHASHABLE_FEATURES)
def test_trusted_hash_names_a_feature_that_cannot_be_hashed(value: Any) -> None:
    assert key(item(feature=value, hash=5), trust=True) == key(item(hash=5), trust=True)


HASHABLE_FEATURES = {
    "parameter": torch.nn.Parameter(torch.zeros(2)),
    "strided": torch.zeros(4, 4)[::2, 1::2],
    "expanded": torch.zeros(1, 2).expand(3, 2),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(1.0),
    "big-endian": np.zeros(2, dtype=">f4"),
    "bytes": b"png",
    "complex": np.zeros(2, dtype=np.complex64),
    "float8": torch.zeros(2).to(torch.float8_e4m3fn),
    "nested list": [torch.zeros(2), [np.zeros(2), b""]],
}


@pytest.mark.parametrize("value", HASHABLE_FEATURES.values(), ids=HASHABLE_FEATURES)
def test_feature_that_can_be_hashed_has_a_key_of_its_content(value: Any) -> None:
    assert is_feature(value)
    found = item_key(item(feature=value), 2, NO_TENANT, False)
    assert found == ItemKey(None, found.arguments)
    assert len(content_key(value, extra=found.arguments)) == 32


UNHASHABLE_DATA = {
    "object": object(),
    "set": {1, 2},
    "keys": {1: "a"},
    "deep": {"a": [{"b": object()}]},
    "array": [np.array([None])],
    "sparse": torch.eye(2).to_sparse(),
}


@pytest.mark.parametrize("value", UNHASHABLE_DATA.values(), ids=UNHASHABLE_DATA)
def test_data_that_cannot_be_hashed_give_a_key_of_this_item_alone(value: Any) -> None:
    assert not is_hashable(value)
    found = item_key(item(grid=value), 2, NO_TENANT, False)
    assert not found.is_shared
    assert found.key != item_key(item(grid=value), 2, NO_TENANT, False).key


def test_every_accepted_value_can_be_hashed() -> None:
    features = {**UNHASHABLE_FEATURES, **HASHABLE_FEATURES}
    for value in [*features.values(), *UNHASHABLE_DATA.values(), 2**999]:
        for accepts, arguments in ((is_feature, (value, None)), (is_hashable, (b"", value))):
            if accepts(value):
                assert len(content_key(arguments[0], extra=arguments[1])) == 32
