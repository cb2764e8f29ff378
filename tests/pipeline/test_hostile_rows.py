"""Rows that no placement can read, from the encoder or precomputed, fail their item and no other item."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, embed, feature, make_ids
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vitcache import Chunk, Item, Span, VisionPipeline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Hostile(torch.Tensor):
    """A tensor whose attributes raise; the memory is that of a plain tensor."""

    @property
    def shape(self) -> Any:
        raise ZeroDivisionError("shape")

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("torch function")


class HostileList(list[Any]):
    """A list whose length is not the number of its elements."""

    def __len__(self) -> int:
        return 7


def as_fake(rows: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(rows)


def as_nested(rows: Tensor) -> Tensor:
    return torch.nested.nested_tensor([rows, rows])


def as_jagged(rows: Tensor) -> Tensor:
    return torch.nested.nested_tensor([rows, rows], layout=torch.jagged)


def as_csr(rows: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rows.to_sparse_csr()


def resized(rows: Tensor, num_bytes: int) -> Tensor:
    rows = rows.clone()
    rows.untyped_storage().resize_(num_bytes)
    return rows


def freed(rows: Tensor) -> Tensor:
    return resized(rows, 0)


def shrunk(rows: Tensor) -> Tensor:
    return resized(rows, rows.nbytes - 1)


UNREADABLE = [
    torch.Tensor.to_sparse,
    as_csr,
    as_fake,
    as_nested,
    as_jagged,
    freed,
    shrunk,
    torch.Tensor.to_mkldnn,
    torch.Tensor.double,
    lambda rows: torch.quantize_per_tensor(rows, 1.0, 0, torch.qint8),
]


@pytest.mark.parametrize("max_rows", [1, 99])
@pytest.mark.parametrize("spoil", UNREADABLE)
def test_encoder_output_that_cannot_be_read_fails_its_item_alone(
    spoil: Callable[[Tensor], Any], max_rows: int
) -> None:
    tower = Tower()

    def encode(features: list[Tensor], items: list[Item]) -> list[Any]:
        return [
            spoil(rows) if item.num_rows == 3 else rows
            for rows, item in zip(tower(features, items), items, strict=True)
        ]

    items = [Item(feature(seed, 2 + seed % 2), Span(4 * seed, 2 + seed % 2)) for seed in range(3)]
    pipeline = VisionPipeline(encode, make_cache(), max_rows_per_encode=max_rows)
    (error,) = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[1]])
    assert (error.item, error.expected) == (1, 3)
    assert isinstance(error.cause, (TypeError, ValueError))
    assert len(pipeline.cache) == 2


@pytest.mark.parametrize("spoil", UNREADABLE)
def test_a_single_encoder_output_that_cannot_be_read_fails_its_item(spoil: Callable[[Tensor], Any]) -> None:
    def encode(features: list[Tensor], items: list[Item]) -> Any:
        return spoil(torch.ones(2, HIDDEN))

    item = Item(feature(0, 2), Span(1, 2))
    pipeline = VisionPipeline(encode, make_cache())
    (error,) = embed(pipeline, [Chunk([item], 0, 4)], 4, failed=[item])
    assert isinstance(error.cause, (TypeError, ValueError))


def test_encoder_output_of_a_subclass_is_read_without_its_methods() -> None:
    tower = Tower()

    def encode(features: list[Tensor], items: list[Item]) -> list[Tensor]:
        return [rows.as_subclass(Hostile) for rows in tower(features, items)]

    pipeline = VisionPipeline(encode, make_cache())
    items = [Item(feature(seed, 2), Span(4 * seed, 2)) for seed in range(3)]
    assert embed(pipeline, [Chunk(items, 0, 12)], 12) == []


def test_a_list_that_lies_about_its_length_fails_its_items_alone() -> None:
    pipeline = VisionPipeline(lambda features, items: HostileList(features[:-1]), make_cache())
    items = [Item(feature(seed, 2), Span(4 * seed, 2)) for seed in range(3)]
    errors = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=items)
    assert [type(error.cause) for error in errors] == [ValueError] * 3


@pytest.mark.parametrize("spoil", [freed, shrunk, as_fake, as_csr, torch.Tensor.double])
def test_precomputed_rows_that_cannot_be_read_fail_their_item_alone(spoil: Callable[[Tensor], Any]) -> None:
    pipeline = VisionPipeline(Tower(), make_cache())
    items = [
        Item(feature(0, 2), Span(0, 2)),
        Item(None, Span(4, 3), rows=spoil(torch.ones(3, HIDDEN))),
        Item(None, Span(8, 3), rows=torch.ones(3, HIDDEN)),
    ]
    (error,) = embed(pipeline, [Chunk(items, 0, 12)], 12, failed=[items[1]])
    assert isinstance(error.cause, (TypeError, ValueError))


def test_precomputed_rows_whose_storage_shrinks_later_fail_their_item() -> None:
    rows = torch.ones(3, HIDDEN)
    items = [Item(None, Span(0, 3), rows=rows), Item(None, Span(4, 3), rows=torch.ones(3, HIDDEN))]
    pipeline = VisionPipeline(Tower(), make_cache())
    assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
    rows.untyped_storage().resize_(5)
    (error,) = embed(pipeline, [Chunk(items, 0, 8)], 8, failed=items[:1])
    assert isinstance(error.cause, ValueError)


def test_precomputed_rows_that_are_resized_after_the_item_is_made_fail_their_item() -> None:
    rows = torch.ones(3, HIDDEN)
    items = [Item(None, Span(0, 3), rows=rows), Item(None, Span(4, 3), rows=torch.ones(3, HIDDEN))]
    rows.resize_(2, HIDDEN)
    (error,) = embed(VisionPipeline(Tower(), make_cache()), [Chunk(items, 0, 8)], 8, failed=items[:1])
    assert str(error.cause) == f"rows must have shape (3, {HIDDEN}), got (2, {HIDDEN})"


def test_item_refuses_nested_rows() -> None:
    with pytest.raises(TypeError, match="rows must be a dense tensor, got a nested tensor"):
        Item(None, Span(0, 2), rows=as_nested(torch.ones(2, HIDDEN)))


@pytest.mark.parametrize("source_start", [2**50, 2**59, 2**60, 2**61, 2**62, 2**63 - 5])
@pytest.mark.parametrize("width", [HIDDEN, 4096])
def test_item_with_a_huge_source_start_fails_alone(source_start: int, width: int) -> None:
    cache = make_cache(8, width=width)
    pipeline = VisionPipeline(lambda features, items: features, cache)
    good, bad = torch.ones(2, width), torch.ones(2, width)
    items = [Item(good, Span(0, 2)), Item(bad, [Span(3, 1, source_start), Span(5, 2)])]
    result = pipeline.embed([Chunk(items, 0, 8)], make_ids(8), torch.full((11, width), 0.5))
    (error,) = result.errors
    assert error[:4] == (0, 1, source_start + 1, 2)
    assert result.inputs_embeds[:, 0].tolist() == [1, 1, 0.5, 0, 0.5, 0, 0, 0.5]
    cache.check_integrity()


@pytest.mark.parametrize("spoil", [freed, shrunk])
def test_feature_with_a_key_and_a_storage_that_is_too_small_fails_alone(
    spoil: Callable[[Tensor], Tensor],
) -> None:
    encoded: list[Tensor] = []

    def encode(features: list[Tensor], items: list[Item]) -> list[Tensor]:
        encoded.extend(features)
        return features

    good, bad = torch.ones(2, HIDDEN), spoil(torch.ones(2, HIDDEN))
    items = [Item(bad, Span(0, 2), key=bytes(32)), Item(good, Span(3, 2), key=bytes([1]) * 32)]
    with VisionPipeline(encode, make_cache(8)) as pipeline:
        result = pipeline.embed([Chunk(items, 0, 8)], make_ids(8), torch.full((11, HIDDEN), 0.5))
    (error,) = result.errors
    assert (error.chunk, error.item) == (0, 0)
    assert isinstance(error.cause, ValueError)
    assert "feature" in str(error.cause)
    assert [tensor.data_ptr() for tensor in encoded] == [good.data_ptr()]
    assert result.inputs_embeds[:, 0].tolist() == [0, 0, 0.5, 1, 1, 0.5, 0.5, 0.5]
