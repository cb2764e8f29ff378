"""Scatter rows of images over tokens: one program per row, column block and deepstack level.

Bytes: each source row is read once and each destination row written once, plus 16 bytes of table per row.
Launches: one per source dtype. The truth is `vitcache.reference.scatter_embeddings`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vitcache.placement import KINDS, Destination, Placement
from vitcache.triton_kernels.rows import TRITON_DTYPES, block_shape, cast, make_table, hold_pinned, on_device


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
    HIDDEN: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out[token(r)] = source(r)[:H]`` and ``deepstack[l, token(r)] = source(r)[H * (l + 1) : H * (l + 2)]``.

    The table holds an address and a token per row, both int64; program ids are row, level and column block.
    """
    row = tl.program_id(0).to(tl.int64)
    level = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    address = tl.load(table_ptr + row * 2)
    token = tl.load(table_ptr + row * 2 + 1)
    source = address.to(tl.pointer_type(SOURCE)) + level * HIDDEN
    if ALIGNED:
        # After the cast to a pointer: on the integer the hint is lost, and with it 16-byte loads.
        source = tl.multiple_of(source, 16)
    values = tl.load(source + columns, mask, other=0)
    if HAS_SCALE:
        values = cast(values.to(tl.float32) * scale, out_ptr.dtype.element_ty)
    elif SOURCE != out_ptr.dtype.element_ty:
        values = cast(values.to(tl.float32), out_ptr.dtype.element_ty)
    if level == 0:
        tl.store(out_ptr + token * out_stride_row + columns, values, mask)
    else:
        plane = deepstack_ptr + (level - 1).to(tl.int64) * deepstack_stride_level
        tl.store(plane + token * deepstack_stride_row + columns, values, mask)


def scatter_rows(
    destination: Destination, placement: Placement, scale: float | None, *, skip: torch.dtype | None = None
) -> None:
    """Launch on the current stream, for every source dtype but `skip`; arguments are checked already."""
    block, num_warps = block_shape(destination.hidden)
    out = destination.rows
    deepstack = out[None] if destination.deepstack is None else destination.deepstack
    with on_device(out.device):
        for dtype in placement.dtypes():
            if dtype == skip or destination.hidden == 0:
                continue
            kind = KINDS[dtype]
            rows = placement.native.num_rows(kind)
            table = make_table(
                2 * rows, out.device, lambda address, kind=kind: placement.native.write_row_table(kind, address)
            )
            aligned = placement.native.aligned(kind) and destination.hidden * dtype.itemsize % 16 == 0
            grid = (rows, 1 + destination.levels, triton.cdiv(destination.hidden, block))
            scatter_rows_kernel[grid](
                table,
                out,
                out.stride(0),
                deepstack,
                deepstack.stride(0),
                deepstack.stride(1),
                1.0 if scale is None else float(scale),
                SOURCE=TRITON_DTYPES[dtype],
                HIDDEN=destination.hidden,
                HAS_SCALE=scale is not None,
                ALIGNED=aligned,
                BLOCK=block,
                num_warps=num_warps,
            )
        hold_pinned(placement.items, out.device)
