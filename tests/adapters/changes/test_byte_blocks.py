"""`cut_in_parts`: blocks of bounded size cover each byte of the weights once, in parts of similar cost."""

from __future__ import annotations

import pytest
import torch
from byte_scene import own_bytes, storage_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcache.adapters.changes.byte_blocks import Block, cut_in_parts, max_block_bytes, regions_of

LARGEST = max_block_bytes(torch.device("cpu"))


def blocks_of(weights: list[Tensor], num_parts: int) -> list[Block]:
    named = [(f"weight{number}", weight) for number, weight in enumerate(weights)]
    parts = cut_in_parts(regions_of(named), num_parts)
    assert 1 <= len(parts) <= num_parts
    return [block for part in parts for block in part]


def strided(rows: int, columns: int, skip: int, dtype: torch.dtype, is_transposed: bool) -> Tensor:
    memory = torch.randint(0, 2, (rows * (columns + skip) * dtype.itemsize,), dtype=torch.uint8)
    tensor = memory.view(dtype).view(rows, columns + skip)[:, :columns]
    return tensor.t() if is_transposed else tensor


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(0, 3),
    st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.complex128]),
    st.booleans(),
    st.integers(1, 50),
)
def test_blocks_have_each_byte_of_a_weight_once(
    rows: int, columns: int, skip: int, dtype: torch.dtype, is_transposed: bool, num_parts: int
) -> None:
    tensor = strided(rows, columns, skip, dtype, is_transposed)
    blocks = blocks_of([tensor], num_parts)
    own = own_bytes(tensor)
    assert sum(block.nbytes for block in blocks) == own.sum()
    assert max(block.nbytes for block in blocks) <= LARGEST
    # With other bytes set in the storage, the words of all blocks are 0; with all bytes set, no word is.
    memory = storage_bytes(tensor)
    memory[:] = ~own
    assert not any(block.words().any() for block in blocks)
    memory[:] = own
    found = sum(int(block.words().view(torch.uint8).sum()) for block in blocks)
    assert found == own.sum()


def test_blocks_of_tied_and_expanded_weights_have_their_bytes_once() -> None:
    weight, row = torch.randn(6, 5), torch.randn(5)
    weights = [weight, weight, weight.detach(), row.expand(9, 5), row]
    assert sum(block.nbytes for block in blocks_of(weights, 4)) == weight.nbytes + row.nbytes
    assert {block.name for block in blocks_of(weights, 4)} == {"weight0", "weight3"}


@pytest.mark.parametrize("num_parts", [1, 10, 99])
def test_parts_cost_about_the_same(num_parts: int) -> None:
    sizes = [3 << 20, *[100] * 90, 1 << 20, 7, *[5000] * 50]
    weights = [(f"weight{number}", torch.zeros(size, dtype=torch.uint8)) for number, size in enumerate(sizes)]
    parts = cut_in_parts(regions_of(weights), num_parts)
    overhead = 32 << 10  # of a block, as bytes that take as long
    share = (sum(sizes) + overhead * sum(map(len, parts))) / num_parts
    for part in parts:
        assert sum(block.nbytes + overhead for block in part) <= share + LARGEST + overhead
