"""`FeatureBatches` with vLLM's own fields: the encoder's arguments are those of vLLM, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
    MultiModalSharedField,
)
from vllm.multimodal.utils import group_and_batch_mm_kwargs
from vllm.utils.jsontree import json_iter_leaves

from vitcache import PinnedRing
from vitcache.adapters.vllm import field_copies
from vitcache.adapters.vllm.feature_batches import FeatureBatches
from vitcache.pipeline.feature_mover import FeatureMover

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
KINDS = ("batched", "flat", "flat inner", "flat last", "shared")


@pytest.fixture(autouse=True)
def poisoned_destinations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let copies of small tensors pass the ring one by one, to memory without zeros."""
    empty = FeatureMover.empty

    def poisoned(mover: FeatureMover, *arguments: Any) -> Tensor:
        tensor = empty(mover, *arguments)
        tensor.view(-1).view(torch.uint8).fill_(0xA5)
        return tensor

    monkeypatch.setattr(FeatureMover, "empty", poisoned)
    monkeypatch.setattr(field_copies, "MIN_COPY_BYTES", 64)


class Field:
    """A random field of a modality: its kind, its dtype, and the form of its data."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.dtype = rng.choice(DTYPES)
        self.kind = rng.choice((*KINDS, "batched", "flat"))
        self.width = rng.choice((1, 3, 40))
        self.form = rng.choice(("equal", "equal", "equal", "unequal", "nested", "strided", "scalar"))
        keep_on_cpu = rng.random() < 0.2
        if self.kind == "batched":
            self.field: Any = MultiModalBatchedField(keep_on_cpu=keep_on_cpu)
        elif self.kind == "shared":
            self.field = MultiModalSharedField(batch_size=1, keep_on_cpu=keep_on_cpu)
        else:
            dim = {"flat": rng.choice((0, -2)), "flat inner": 1, "flat last": -1}[self.kind]
            self.field = MultiModalFlatField(slices=[], dim=dim, keep_on_cpu=keep_on_cpu)
        self.common = self.data()

    def tensor(self, rows: int, width: int) -> Tensor:
        values = torch.randint(-300, 300, (rows, width))
        if self.form == "strided":
            return values.to(self.dtype).T.contiguous().T
        return (
            values.to(self.dtype) if self.rng.random() < 0.8 else values.repeat(1, 2).to(self.dtype)[:, ::2]
        )

    def data(self) -> Any:
        rows, width = self.rng.randint(0, 12), self.width
        if self.kind == "batched":
            if self.form == "scalar":
                return self.rng.choice((torch.tensor(self.rng.randint(0, 9)), self.rng.randint(0, 9)))
            rows = rows if self.form == "unequal" else 5
        elif self.form == "unequal":
            width = self.rng.randint(1, 40)
        elif self.kind in ("flat inner", "flat last"):
            rows, width = 5, self.rng.randint(0, 12)
        if self.form == "nested" and self.kind == "batched" and self.rng.random() < 0.5:
            return {"a": self.tensor(2, width), "b": (self.tensor(rows, 1), 7)}
        if self.form == "nested" and getattr(self.field, "dim", 0) == 0:
            return [self.tensor(self.rng.randint(0, 6), width) for _ in range(self.rng.randint(0, 3))]
        return self.tensor(rows, width)

    def elem(self) -> MultiModalFieldElem:
        is_shared = self.kind == "shared" and self.rng.random() < 0.9
        return MultiModalFieldElem(data=self.common if is_shared else self.data(), field=self.field)


def random_step(rng: random.Random) -> tuple[list[tuple[str, MultiModalKwargsItem]], list[int]]:
    """Items of several modalities in any order, and their numbers of rows."""
    forms = {
        modality: {f"key{number}": Field(rng) for number in range(rng.randint(1, 4))}
        for modality in rng.sample(("image", "video", "audio"), rng.choice((1, 1, 2, 3)))
    }
    items, lacks_keys = [], rng.random() < 0.2
    for _ in range(rng.randint(1, 20)):
        modality, fields = rng.choice(list(forms.items()))
        keys = [key for key in fields if not lacks_keys or rng.random() < 0.9] or list(fields)
        items.append((modality, MultiModalKwargsItem({key: fields[key].elem() for key in keys})))
    return items, [rng.choice((0, 1, 3, 8, 30)) for _ in items]


def assert_same(found: Any, expected: Any) -> None:
    """Equal structure, types, dtypes, shapes, devices and values."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for left, right in zip(found, expected, strict=True):
            assert_same(left, right)
    elif isinstance(expected, Tensor):
        assert (found.dtype, found.shape, found.device) == (expected.dtype, expected.shape, expected.device)
        # With the dtypes here, equal values have equal bits.
        assert torch.equal(found, expected)
    else:
        assert found == expected


def check(batches: FeatureBatches, rng: random.Random, max_rows: int, has_ring: bool) -> Iterator[int]:
    """Encode one step; yield the number of items of each micro-batch."""
    items, num_rows = random_step(rng)
    order = sorted(range(len(items)), key=lambda position: items[position][0])
    groups = [
        num_items for _, num_items, _ in group_and_batch_mm_kwargs([items[position] for position in order])
    ]
    encoded: list[int] = []

    def encode(modality: str, num_items: int, arguments: dict[str, Any]) -> list[Tensor]:
        positions = order[len(encoded) : len(encoded) + num_items]
        encoded.extend(positions)
        [expected] = group_and_batch_mm_kwargs([items[position] for position in positions], device=CPU)
        assert_same((modality, num_items, arguments), expected)
        if has_ring:  # vLLM's copies to a GPU are contiguous, too
            fields = items[positions[0]][1]
            moved = [value for key, value in arguments.items() if not fields[key].field.keep_on_cpu]
            assert all(leaf.is_contiguous() for leaf in json_iter_leaves(moved) if isinstance(leaf, Tensor))
        return [torch.tensor(position) for position in positions]

    ends = []
    for positions, outputs in batches.run(items, num_rows, encode):
        assert [int(output) for output in outputs] == positions
        rows = [num_rows[position] for position in positions]
        assert sum(rows) <= max_rows or len(rows) == 1
        ends.append(len(encoded))
        yield len(positions)
    assert encoded == order
    group_ends = {sum(groups[: number + 1]) for number in range(len(groups))}
    assert group_ends <= set(ends)
    begins = [0, *ends]
    for begin, end in zip(begins, ends, strict=False):
        if end not in group_ends:  # only a micro-batch that is full ends within a group
            assert sum(num_rows[position] for position in order[begin : end + 1]) > max_rows


@pytest.mark.parametrize("seed", range(60))
def test_arguments_of_random_items_through_a_small_ring_are_those_of_vllm(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    max_rows = rng.choice((1, 8, 20, 4096))
    capacity = rng.choice((4096, 1 << 14, 1 << 18))
    with (
        PinnedRing(capacity, backend="host", num_threads=1, piece_bytes=rng.choice((256, 1024))) as ring,
        torch.inference_mode(),
    ):
        batches = FeatureBatches(CPU, ring, max_rows)
        sizes = [size for _ in range(6) for size in check(batches, rng, max_rows, has_ring=True)]
        copies = ring.stats().copies
        ring.check_integrity()
    assert copies > len(sizes) / 2


@pytest.mark.parametrize("seed", range(5))
def test_arguments_without_a_ring_are_those_of_vllm(seed: int) -> None:
    rng = random.Random(seed)
    batches = FeatureBatches(CPU, None, 20)
    sizes = [size for _ in range(6) for size in check(batches, rng, 20, has_ring=False)]
    assert max(sizes) > 1


@pytest.mark.parametrize(
    ("field", "copies"),
    [
        (MultiModalBatchedField(), 8),
        (MultiModalFlatField(slices=[]), 8),
        (MultiModalFlatField(slices=[], dim=-2), 8),
        (MultiModalFlatField(slices=[], dim=1), 1),
        (MultiModalSharedField(batch_size=8), 1),
    ],
    ids=["batched", "flat", "flat from behind", "flat inner", "shared"],
)
def test_large_tensors_are_copied_one_by_one_if_vllm_lays_them_in_a_row(field: Any, copies: int) -> None:
    """The module knows vLLM's classes by their names. Under other names it would copy once after a join."""
    pixels = torch.randn(40, 60)
    items = [("image", MultiModalKwargsItem({"pixels": MultiModalFieldElem(pixels, field)}))] * 8
    with PinnedRing(1 << 20, backend="host", num_threads=1) as ring:
        [(positions, [joined])] = FeatureBatches(CPU, ring).run(
            items, [1] * 8, lambda modality, num_items, arguments: [arguments["pixels"]]
        )
        assert ring.stats().copies == copies
    assert positions == list(range(8))
    [(_, _, expected)] = group_and_batch_mm_kwargs(items)
    assert_same(joined, expected["pixels"])
