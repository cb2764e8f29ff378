"""Scatter image rows to tokens: one program per row, deepstack level and column block.

Bytes: one read and one write per row, and one more write per stored row; 16 bytes of table per row, or 24 if
the launch stores rows. Launches: one per source dtype. The reference is
`vitcache.placement.reference.scatter_embeddings`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcache.triton_kernels.blocks import BlockShape, block_shape
from vitcache.triton_kernels.rows import (
    TRITON_DTYPES,
    deepstack_arguments,
    load_image_row,
    num_planes,
    row_pointer,
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

    The table has two int64 per row: the row's address and its token. If `HAS_HOLES`, an address of 0 means
    an unused entry. If the launch stores rows, a third int64 is the address in the page, and a token of -1
    means a row that is stored but not placed. The program ids are row, level and column block.
    """
    row = tl.program_id(0).to(tl.int64)
    level = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    COLUMNS: tl.constexpr = 2 if STORE is None else 3
    address = tl.load(table_ptr + row * COLUMNS)
    token = tl.load(table_ptr + row * COLUMNS + 1)
    page = address if STORE is None else tl.load(table_ptr + row * COLUMNS + 2)
    if HAS_HOLES:  # noqa: SIM102 - a compile-time condition, unlike the next one
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
    if STORE is not None:  # noqa: SIM102 - a compile-time condition, unlike the next one
        if token == -1:
            return
    target = row_pointer(
        token, level, out_ptr, out_stride_row, deepstack_ptr, deepstack_stride_level, deepstack_stride_row
    )
    tl.store(target + columns, values, mask)


def launch_scatter_rows(
    table: Tensor,
    rows: Tensor,
    deepstack: Tensor | None,
    dtype: torch.dtype,
    scale: float | None,
    *,
    aligned: bool,
    store: torch.dtype | None = None,
    has_holes: bool = False,
    shape: BlockShape | None = None,
) -> None:
    """Queue one launch on the current stream for the rows of `dtype` in `table`.

    Parameters
    ----------
    table
        int64, in memory that the device can read. Its layout is described at `scatter_rows_kernel`.
    rows, deepstack
        The destination: ``(T, H)``, and ``(L, T, H)`` or None.
    dtype
        Dtype of the image rows.
    scale
        Factor of the image rows, or None.
    aligned
        Whether every level of every row, and of its pages, begins at a multiple of 16 bytes.
    store
        Dtype of the pages to which rows are stored. None: the launch stores no rows.
    has_holes
        Whether an address in the table may be 0.
    shape
        Block shape. None: that of `block_shape`.
    """
    hidden = rows.shape[1]
    block, num_warps = shape or block_shape(hidden, rows.device)
    grid = (
        len(table) // (2 if store is None else 3),
        num_planes(deepstack),
        triton.cdiv(hidden, block),
    )
    if 0 in grid:
        return
    scatter_rows_kernel[grid](
        table,
        rows,
        rows.stride(0),
        *deepstack_arguments(rows, deepstack),
        1.0 if scale is None else float(scale),
        SOURCE=TRITON_DTYPES[dtype],
        STORE=None if store is None else TRITON_DTYPES[store],
        HIDDEN=hidden,
        HAS_SCALE=scale is not None,
        HAS_HOLES=has_holes,
        ALIGNED=aligned,
        BLOCK=block,
        num_warps=num_warps,
    )
