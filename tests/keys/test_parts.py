"""`part_keys`, `region_keys`, `tensor_keys`: each key equals `content_key` of the part or the tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vitcache import Namespace, content_key
from vitcache.keys import digests
from vitcache.keys.parts import (
    frame,
    frame_dict,
    has_parts,
    part_digests,
    part_keys,
    region_keys,
    tensor_keys,
)

EXTRAS: list[Any] = [None, [1, 2, 3], {"b": "x", "a": [True, 1.0, None]}]
NAMESPACE = b"namespace"


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(6, 5),
        torch.randn(6, 5).to(torch.bfloat16),
        torch.randn(6, 5, requires_grad=True),
        torch.arange(30, dtype=torch.uint8).reshape(6, 5),
        torch.arange(30).reshape(6, 5) % 2 == 0,
        torch.randn(6, 5).to(torch.float16),
        torch.randn(6, 5, dtype=torch.complex64),
        torch.randn(6, 40_000),
        torch.randn(6, 0),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_part_keys_equal_the_content_keys_of_the_parts(
    tensor: Tensor, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if algorithm == "blake3":
        pytest.importorskip("blake3")
    monkeypatch.setattr(digests, "ALGORITHM", algorithm)
    width = tensor.shape[1]
    rows = [(0, 2), (2, 2), (1, 6)]
    shapes = [(2, width), (0, width), (1, 5, width)]
    bounds = [(first * width, last * width) for first, last in rows]
    keys = part_keys(tensor, bounds, shapes, [frame(extra) for extra in EXTRAS], NAMESPACE)
    assert keys == [
        content_key(tensor[first:last].reshape(shape), namespace=NAMESPACE, extra=extra)
        for (first, last), shape, extra in zip(rows, shapes, EXTRAS, strict=True)
    ]


def test_region_keys_equal_the_content_keys_of_the_views() -> None:
    for tensor in (torch.randn(3, 4, 5), torch.randn(3, 5, 4).to(torch.bfloat16).transpose(1, 2)):
        regions = [(slice(0, 1),), (..., slice(1, 3)), (slice(2, 3), slice(None), slice(0))]
        shapes = [tuple(tensor[region].shape) for region in regions]
        keys = region_keys(tensor, regions, shapes, [frame(extra) for extra in EXTRAS], NAMESPACE)
        assert keys == [
            content_key(tensor[region], namespace=NAMESPACE, extra=extra)
            for region, extra in zip(regions, EXTRAS, strict=True)
        ]


def test_tensor_keys_equal_the_content_keys_of_the_tensors() -> None:
    tensors = [torch.randn(2, 3), torch.randn(3, 700_000)[:, ::2], torch.arange(4).to(torch.bfloat16)]
    keys = tensor_keys(tensors, [frame(extra) for extra in EXTRAS], NAMESPACE)
    assert keys == [
        content_key(tensor, namespace=NAMESPACE, extra=extra)
        for tensor, extra in zip(tensors, EXTRAS, strict=True)
    ]


def test_part_digests_are_equal_for_equal_bytes() -> None:
    one, two, three, four = part_digests(torch.tensor([1, 2, 1, 2]), [(0, 2), (1, 3), (2, 4), (0, 1)])
    assert one == three
    assert len({one, two, four}) == 3


def test_part_keys_in_a_namespace_object_equal_those_in_its_digest() -> None:
    namespace, parts = Namespace("m"), (torch.ones(4), [(0, 2)], [(2,)], [frame(None)])
    assert part_keys(*parts, namespace) == part_keys(*parts, namespace.digest())
    assert part_keys(*parts, namespace) == [content_key(torch.ones(2), namespace=namespace)]


def test_frame_dict_of_framed_values_equals_the_frame_of_the_dict() -> None:
    extra = {"modality": "image", "item": [1, 4, 4], "options": {"layer": -1}}
    assert frame_dict({name: frame(value) for name, value in extra.items()}) == frame(extra)


def test_has_parts_refuses_tensors_that_are_not_contiguous_or_not_on_the_host() -> None:
    assert has_parts(torch.zeros(2, 3))
    assert not has_parts(torch.zeros(3, 2).t())
    assert not has_parts(torch.zeros(2, 3, device="meta"))


def test_part_keys_of_a_dtype_that_cannot_be_hashed_raises() -> None:
    with pytest.raises(TypeError, match=r"feature is a tensor of dtype torch.complex32"):
        part_keys(torch.zeros(1, dtype=torch.complex32), [(0, 1)], [(1,)], [b""], NAMESPACE)
