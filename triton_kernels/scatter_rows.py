"""Scatter image rows to tokens: one program per row, deepstack level and column block.

Bytes: one read and one write per row, and one more write per stored row; 16 bytes of table per row, and 8
more if the launch stores rows or the deepstack levels are packed. Launches: one per source dtype. The
reference is `vitcache.placement.reference.scatter_embeddings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcache.triton_kernels.blocks import BlockShape, block_shape
from vitcache.triton_kernels.launch import RowKernel
from vitcache.triton_kernels.rows import (
    NO_LEVELS,
    TRITON_DTYPES,
    LevelForm,
    describe_planes,
    load_image_row,
    row_pointer,
)

ARGUMENTS = [
    "table_address",
    "out_address",
    "out_stride_row",
    "deepstack_address",
    "deepstack_stride_level",
    "deepstack_stride_row",
    "scale",
]


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def scatter_rows_kernel(  # type: ignore[no-untyped-def]
    table_address: tl.int64,
    out_address: tl.int64,
    out_stride_row: tl.int64,
    deepstack_address: tl.int64,
    deepstack_stride_level: tl.int64,
    deepstack_stride_row: tl.int64,
    scale: tl.float32,
    SOURCE: tl.constexpr,
    STORE: tl.constexpr,
    TARGET: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_HOLES: tl.constexpr,
    LISTED: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_NARROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out[token(r)] = source(r)[:H]``, ``deepstack[l, token(r)] = source(r)[H * (l + 1) : H * (l + 2)]``.

    The table has two int64 per row: the row's address and its token. If `HAS_HOLES`, an address of 0 means
    an unused entry. If the launch stores rows, a third int64 is the address in the page, and a token of -1
    means a row that is stored but not placed. If `PACKED`, the last int64 is the row of the deepstack levels.
    The program ids are row, level and column block.
    """
    row = tl.program_id(0).to(tl.int64)
    level = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    COLUMNS: tl.constexpr = (2 if STORE is None else 3) + (1 if PACKED else 0)
    table = table_address.to(tl.pointer_type(tl.int64))
    address = tl.load(table + row * COLUMNS)
    token = tl.load(table + row * COLUMNS + 1)
    page = address if STORE is None else tl.load(table + row * COLUMNS + 2)
    level_row = tl.load(table + row * COLUMNS + COLUMNS - 1) if PACKED else token
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
        TARGET,
        HIDDEN,
        HAS_SCALE,
        HAS_NARROW,
        ALIGNED,
    )
    if STORE is not None:  # noqa: SIM102 - a compile-time condition, unlike the next one
        if token == -1:
            return
    target = row_pointer(
        token,
        level_row,
        level,
        out_address,
        out_stride_row,
        deepstack_address,
        deepstack_stride_level,
        deepstack_stride_row,
        TARGET,
        LISTED,
        ALIGNED,
    )
    tl.store(target + columns, values, mask)


class ScatterVariant(NamedTuple):
    """The constants of one compiled scatter."""

    device: int | None
    source: torch.dtype
    store: torch.dtype | None
    target: torch.dtype
    hidden: int
    has_scale: bool
    has_holes: bool
    form: LevelForm
    is_aligned: bool
    shape: BlockShape

    def constants(self) -> dict[str, Any]:
        """The kernel's constants by name."""
        return {
            "SOURCE": TRITON_DTYPES[self.source],
            "STORE": None if self.store is None else TRITON_DTYPES[self.store],
            "TARGET": TRITON_DTYPES[self.target],
            "HIDDEN": self.hidden,
            "HAS_SCALE": self.has_scale,
            "HAS_HOLES": self.has_holes,
            **self.form.constants(),
            "ALIGNED": self.is_aligned,
            "BLOCK": self.shape.block,
        }

    @property
    def num_warps(self) -> int:
        """Warps per program."""
        num_warps: int = self.shape.num_warps
        return num_warps


scatter_kernel = RowKernel(scatter_rows_kernel)


def launch_scatter_rows(
    table: Tensor,
    rows: Tensor,
    deepstack: Tensor | Sequence[Tensor] | None,
    dtype: torch.dtype,
    scale: float | None,
    *,
    aligned: bool,
    store: torch.dtype | None = None,
    has_holes: bool = False,
    form: LevelForm = NO_LEVELS,
    level_address: int = 0,
    shape: BlockShape | None = None,
) -> None:
    """Queue one launch on the current stream for the rows of `dtype` in `table`.

    Parameters
    ----------
    table
        int64, in memory that the device can read. Its layout is described at `scatter_rows_kernel`.
    rows, deepstack
        The destination: ``(T, H)``, and ``(L, T, H)``, a list of L tensors ``(T, H)``, or None. Packed levels
        have a row per placed token in place of T rows.
    dtype
        Dtype of the image rows.
    scale
        Factor of the image rows, or None.
    aligned
        Whether every level of every source row, and of its pages, begins at a multiple of 16 bytes.
    store
        Dtype of the pages to which rows are stored. None: the launch stores no rows.
    has_holes
        Whether an address in the table may be 0.
    form
        The form of the levels, and whether addresses in the table may be marked as narrow.
    level_address
        If the levels are a list: the address of two int64 per level, address and row stride in elements, in
        memory that the device can read.
    shape
        Block shape. None: that of `block_shape`.
    """
    hidden, num_rows = rows.shape[1], table.shape[0] // ((2 if store is None else 3) + form.is_packed)
    if num_rows == 0 or hidden == 0:
        return
    shape = shape or block_shape(hidden, rows.device)
    planes = describe_planes(rows, deepstack, level_address)
    variant = ScatterVariant(
        rows.device.index,
        dtype,
        store,
        rows.dtype,
        hidden,
        scale is not None,
        has_holes,
        form,
        aligned and planes.is_aligned,
        shape,
    )
    scatter_kernel.launch(
        variant,
        (num_rows, planes.num_planes, -(-hidden // shape.block)),
        (table.data_ptr(), *planes.arguments, 1.0 if scale is None else scale),
    )
