"""Scatter rows of images over tokens: one program per row, deepstack level and column block.

Bytes: each source row is read once and each destination row written once, and what is stored in pages once
more; plus 16 bytes of table per row, 24 where any is stored.
Launches: one per source dtype. The truth is `vitcache.reference.scatter_embeddings`.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcache.destination import Destination
from vitcache.host_blocks import copy_host_blocks
from vitcache.placement import Placement
from vitcache.placement_table import PlacementTable
from vitcache.rows import KINDS
from vitcache.triton_kernels.blocks import BlockShape, block_shape
from vitcache.triton_kernels.rows import (
    TRITON_DTYPES,
    deepstack_arguments,
    hold_pinned,
    is_aligned,
    load_image_row,
    make_table,
    on_device,
    row_pointer,
    store_dtype,
)


@triton.jit
def scatter_rows_kernel(  # type: ignore[no-untyped-def]
    table_ptr,
    out_ptr,
    out_stride_row,
    deepstack_ptr,
    deepstack_stride_level,
    deepstack_stride_row,
    scale,
    SOURCE: tl.constexpr,
    STORE: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_HOLES: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out[token(r)] = source(r)[:H]``, ``deepstack[l, token(r)] = source(r)[H * (l + 1) : H * (l + 2)]``.

    The table holds an address and a token per row, both int64; an address of 0 is a hole, where a table may
    have any. Where rows are stored, the page's address is the third, and a token of -1 means that a row is
    only stored. Program ids are row, level and column block.
    """
    row = tl.program_id(0).to(tl.int64)
    level = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    COLUMNS: tl.constexpr = 2 if STORE is None else 3
    address = tl.load(table_ptr + row * COLUMNS)
    token = tl.load(table_ptr + row * COLUMNS + 1)
    page = address if STORE is None else tl.load(table_ptr + row * COLUMNS + 2)
    if HAS_HOLES:  # noqa: SIM102 - known when it is compiled, unlike the address
        if address == 0:
            return
    values = load_image_row(
        address,
        page,
        level,
        columns,
        mask,
        scale,
        SOURCE,
        STORE,
        out_ptr.dtype.element_ty,
        HIDDEN,
        HAS_SCALE,
        ALIGNED,
    )
    if STORE is not None:  # noqa: SIM102 - known when it is compiled, unlike the token
        if token == -1:
            return
    target = row_pointer(
        token, level, out_ptr, out_stride_row, deepstack_ptr, deepstack_stride_level, deepstack_stride_row
    )
    tl.store(target + columns, values, mask)


def launch_scatter_rows(
    destination: Destination,
    table: Tensor,
    dtype: torch.dtype,
    scale: float | None,
    *,
    aligned: bool,
    store: tl.dtype | None = None,
    has_holes: bool = False,
    shape: BlockShape | None = None,
) -> None:
    """Launch on the current stream for rows of `dtype` that `table` lists, two int64 values each, three where
    rows are stored.
    """
    block, num_warps = shape or block_shape(destination.hidden, destination.rows.device)
    out = destination.rows
    grid = (
        len(table) // (2 if store is None else 3),
        1 + destination.levels,
        triton.cdiv(destination.hidden, block),
    )
    if 0 in grid:
        return
    scatter_rows_kernel[grid](
        table,
        out,
        out.stride(0),
        *deepstack_arguments(destination),
        1.0 if scale is None else float(scale),
        SOURCE=TRITON_DTYPES[dtype],
        STORE=store,
        HIDDEN=destination.hidden,
        HAS_SCALE=scale is not None,
        HAS_HOLES=has_holes,
        ALIGNED=aligned,
        BLOCK=block,
        num_warps=num_warps,
    )


def scatter_rows(
    destination: Destination, placement: Placement, scale: float | None, *, skip: torch.dtype | None = None
) -> None:
    """Launch on the current stream, for every source dtype but `skip`; arguments are checked already."""
    device = destination.rows.device
    with on_device(device):
        if skip is None:
            copy_host_blocks(destination, placement, scale)
        for dtype in placement.dtypes():
            if dtype == skip:
                continue
            native, kind, store = placement.native, KINDS[dtype], store_dtype(placement, dtype)
            num_rows = native.num_rows(kind)
            if store is None:
                table = make_table(2 * num_rows, device, partial(native.write_row_table, kind))
            else:
                num_rows += native.num_unplaced_rows(kind)
                table = make_table(3 * num_rows, device, partial(native.write_stored_row_table, kind))
            aligned = is_aligned(destination, placement, dtype)
            launch_scatter_rows(destination, table, dtype, scale, aligned=aligned, store=store)
        hold_pinned(placement.items, device)


def scatter_table(destination: Destination, table: PlacementTable, scale: float | None) -> None:
    """Launch for every row that `table` may ever hold, so that a captured launch serves each update."""
    aligned = destination.hidden * table.dtype.itemsize % 16 == 0
    with on_device(destination.rows.device):
        launch_scatter_rows(destination, table.rows, table.dtype, scale, aligned=aligned, has_holes=True)
