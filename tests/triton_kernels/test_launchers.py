"""The launchers on plain tensors, with tables of addresses made by hand and destinations filled with NaN."""

from __future__ import annotations

import pytest
import torch
from placement_cases import make_rows, poisoned, same_bits
from torch import Tensor

pytest.importorskip("triton")

from vitcache.triton_kernels import blocks
from vitcache.triton_kernels.blocks import BlockShape, block_shape
from vitcache.triton_kernels.embed_rows import launch_embed_rows
from vitcache.triton_kernels.scatter_rows import launch_scatter_rows

pytestmark = pytest.mark.triton

DTYPE = torch.bfloat16


@pytest.fixture
def device(kernel_device: str) -> str:
    return kernel_device


def addresses(rows: Tensor) -> list[int]:
    """The address of each row."""
    return [rows.data_ptr() + index * rows.stride(0) * rows.element_size() for index in range(len(rows))]


def table_of(values: list[int], device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


def pairs(rows: Tensor, tokens: list[int]) -> list[int]:
    """(address, token) of each row."""
    return [value for pair in zip(addresses(rows), tokens, strict=True) for value in pair]


@pytest.mark.parametrize("hidden", [8, 33])
@pytest.mark.parametrize("shape", [None, BlockShape(8, 1), BlockShape(32, 2)])
def test_scatter_writes_each_row_to_its_token_and_no_other_token(
    device: str, hidden: int, shape: BlockShape | None
) -> None:
    rows, out = make_rows(3, hidden, DTYPE, device), poisoned(6, hidden, dtype=DTYPE, device=device)
    table = table_of(pairs(rows, [4, 0, 2]), device)
    launch_scatter_rows(table, out, None, DTYPE, None, aligned=hidden % 8 == 0, shape=shape)
    assert same_bits(out[[4, 0, 2]], rows)
    assert out[[1, 3, 5]].isnan().all()


def test_scatter_with_holes_skips_entries_with_address_zero(device: str) -> None:
    rows, out = make_rows(1, 16, DTYPE, device), poisoned(3, 16, dtype=DTYPE, device=device)
    table = table_of([0, 0, *pairs(rows, [2]), 0, 0], device)
    launch_scatter_rows(table, out, None, DTYPE, None, aligned=True, has_holes=True)
    assert same_bits(out[2:], rows)
    assert out[:2].isnan().all()


def test_scatter_with_deepstack_writes_columns_to_levels_in_order(device: str) -> None:
    rows, out = make_rows(2, 3 * 16, DTYPE, device), poisoned(4, 16, dtype=DTYPE, device=device)
    levels = poisoned(2, 4, 16, dtype=DTYPE, device=device)
    launch_scatter_rows(table_of(pairs(rows, [3, 1]), device), out, levels, DTYPE, None, aligned=True)
    for plane, columns in zip((out, *levels), rows.split(16, dim=1), strict=True):
        assert same_bits(plane[[3, 1]], columns)
        assert plane[[0, 2]].isnan().all()


def test_scatter_strided_destination_writes_its_columns_alone(device: str) -> None:
    rows, wide = make_rows(2, 16, DTYPE, device), poisoned(4, 40, dtype=DTYPE, device=device)
    launch_scatter_rows(
        table_of(pairs(rows, [3, 0]), device), wide[:, 16:32], None, DTYPE, None, aligned=True
    )
    assert same_bits(wide[[3, 0], 16:32], rows)
    assert wide[:, :16].isnan().all()
    assert wide[:, 32:].isnan().all()


def test_scatter_scale_multiplies_in_float32_before_the_cast(device: str) -> None:
    rows, out = make_rows(2, 16, DTYPE, device), poisoned(2, 16, dtype=torch.float16, device=device)
    launch_scatter_rows(table_of(pairs(rows, [0, 1]), device), out, None, DTYPE, 0.37, aligned=True)
    assert same_bits(out, (rows.float() * 0.37).half())


def test_scatter_with_store_rounds_to_the_dtype_of_the_pages_first(device: str) -> None:
    rows = make_rows(3, 16, torch.float32, device)
    pages, out = (
        poisoned(3, 16, dtype=DTYPE, device=device),
        poisoned(4, 16, dtype=torch.float32, device=device),
    )
    row, page = addresses(rows), addresses(pages)
    # Row 0 is placed and stored, row 1 only placed, row 2 only stored.
    table = table_of([row[0], 2, page[0], row[1], 0, 0, row[2], -1, page[2]], device)
    launch_scatter_rows(table, out, None, torch.float32, None, aligned=True, store=DTYPE)
    assert same_bits(out[2], rows[0].to(DTYPE).float())
    assert same_bits(out[0], rows[1])
    assert out[[1, 3]].isnan().all()
    assert same_bits(pages[[0, 2]], rows[[0, 2]].to(DTYPE))
    assert pages[1].isnan().all()


def test_launchers_with_an_empty_table_write_nothing(device: str) -> None:
    out = poisoned(2, 16, dtype=DTYPE, device=device)
    launch_scatter_rows(table_of([], device), out, None, DTYPE, None, aligned=True)
    assert out.isnan().all()
    ids, weight = torch.zeros(0, dtype=torch.int64, device=device), make_rows(2, 16, DTYPE, device)
    launch_embed_rows(table_of([], device), out[:0], None, ids, weight, DTYPE, None, None, aligned=True)


@pytest.mark.parametrize("hidden", [16, 33])
@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32], ids=str)
def test_embed_writes_text_rows_from_the_weight_and_image_rows_from_the_table(
    device: str, hidden: int, id_dtype: torch.dtype
) -> None:
    weight, rows = make_rows(7, hidden, DTYPE, device), make_rows(2, hidden, DTYPE, device)
    out = poisoned(5, hidden, dtype=DTYPE, device=device)
    ids = torch.tensor([6, 1 << 30, 0, -5, 3], dtype=id_dtype, device=device)
    first, second = addresses(rows)
    table = table_of([0, first, 0, second, -1], device)  # -1: another launch writes token 4
    launch_embed_rows(table, out, None, ids, weight, DTYPE, None, None, aligned=hidden % 8 == 0)
    assert same_bits(out[[0, 2]], weight[[6, 0]])
    assert same_bits(out[[1, 3]], rows)
    assert out[4].isnan().all()


def test_embed_with_deepstack_and_scales_zeroes_text_levels_and_scales_both(device: str) -> None:
    weight, rows = make_rows(3, 16, DTYPE, device), make_rows(1, 32, DTYPE, device)
    out, levels = poisoned(2, 16, dtype=DTYPE, device=device), poisoned(1, 2, 16, dtype=DTYPE, device=device)
    ids, table = torch.tensor([2, 0], device=device), table_of([0, addresses(rows)[0]], device)
    launch_embed_rows(table, out, levels, ids, weight, DTYPE, 0.5, 3.0, aligned=True)
    assert same_bits(out[0], weight[2] * 3)
    assert same_bits(out[1], (rows[0, :16].float() * 0.5).to(DTYPE))
    assert same_bits(levels[0, 1], (rows[0, 16:].float() * 0.5).to(DTYPE))
    assert not levels[0, 0].any()


def test_embed_with_store_stores_rows_without_a_token(device: str) -> None:
    weight, rows = make_rows(3, 16, DTYPE, device), make_rows(2, 16, DTYPE, device)
    pages, out = poisoned(2, 16, dtype=DTYPE, device=device), poisoned(2, 16, dtype=DTYPE, device=device)
    row, page = addresses(rows), addresses(pages)
    table = table_of([0, 0, row[0], page[0], row[1], page[1]], device)
    ids = torch.tensor([1, 0], device=device)
    launch_embed_rows(table, out, None, ids, weight, DTYPE, None, None, aligned=True, store=DTYPE)
    assert same_bits(out, torch.stack([weight[1], rows[0]]))
    assert same_bits(pages, rows)


def test_block_shape_is_the_measured_shape_or_else_as_wide_as_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "read_table", lambda: {"cpu": {"640": [128, 2]}})
    block_shape.cache_clear()
    cpu = torch.device("cpu")
    try:
        assert block_shape(640, cpu) == BlockShape(128, 2)
        assert block_shape(641, cpu) == BlockShape(1024, 2)
        assert block_shape(1, cpu) == BlockShape(1, 1)
        assert block_shape(4096, cpu) == block_shape(100_000, cpu) == BlockShape(4096, 8)
    finally:
        block_shape.cache_clear()


def test_embed_with_more_embeddings_than_the_kernel_can_name_raises(device: str) -> None:
    out, ids = poisoned(1, 8, dtype=DTYPE, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    weight = torch.zeros(1, 8, dtype=DTYPE, device=device).expand((1 << 32) + 1, 8)
    with pytest.raises(
        ValueError, match=r"weight has 4294967297 rows, on a GPU it may have at most 4294967296"
    ):
        launch_embed_rows(table_of([0], device), out, None, ids, weight, DTYPE, None, None, aligned=True)
    assert out.isnan().all()
