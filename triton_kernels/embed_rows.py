"""Build ``inputs_embeds``: the row of the weight at text tokens, the row of an image elsewhere, in one pass.

Bytes: one read and one write per row of the output, and what is stored in pages once more; plus the id and 8
bytes of table per token, 16 where any is stored. Launches: one, and one scatter for each further source
dtype. The truth is `vitcache.reference.embed_tokens`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcache.destination import Destination
from vitcache.host_blocks import copy_host_blocks
from vitcache.placement import Placement
from vitcache.placement_table import PlacementTable
from vitcache.rows import KINDS
from vitcache.triton_kernels.blocks import block_shape
from vitcache.triton_kernels.rows import (
    TRITON_DTYPES,
    cast,
    deepstack_arguments,
    is_aligned,
    load_image_row,
    make_table,
    on_device,
    row_pointer,
    store_dtype,
)
from vitcache.triton_kernels.scatter_rows import scatter_rows


@triton.jit(do_not_specialize=["num_tokens"])
def embed_rows_kernel(  # type: ignore[no-untyped-def]
    table_ptr,
    num_tokens,
    ids_ptr,
    weight_ptr,
    weight_stride_row,
    out_ptr,
    out_stride_row,
    deepstack_ptr,
    deepstack_stride_level,
    deepstack_stride_row,
    scale,
    text_scale,
    SOURCE: tl.constexpr,
    STORE: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_TEXT_SCALE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per token, level and column block.

    The table holds one int64 per token: the address of its image row, 0 for text, -1 for a row of another
    launch. Where rows are stored, the page's address is the second, and rows that are only stored follow the
    tokens.
    """
    token = tl.program_id(0).to(tl.int64)
    level = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    if STORE is None:
        address = tl.load(table_ptr + token)
        page = address
        placed = mask
        token_id = tl.load(ids_ptr + token).to(tl.int64)
    else:
        address = tl.load(table_ptr + token * 2)
        page = tl.load(table_ptr + token * 2 + 1)
        placed = columns < tl.where(token < num_tokens, HIDDEN, 0)
        token_id = tl.load(ids_ptr + token, token < num_tokens, other=0).to(tl.int64)
    if address != -1:
        target = row_pointer(
            token, level, out_ptr, out_stride_row, deepstack_ptr, deepstack_stride_level, deepstack_stride_row
        )
        if address != 0:
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
            tl.store(target + columns, values, placed)
        elif level == 0:
            row = tl.load(weight_ptr + token_id * weight_stride_row + columns, mask, other=0)
            if HAS_TEXT_SCALE:
                row = cast(row.to(tl.float32) * text_scale, weight_ptr.dtype.element_ty)
            if weight_ptr.dtype.element_ty != out_ptr.dtype.element_ty:
                row = cast(row.to(tl.float32), out_ptr.dtype.element_ty)
            tl.store(target + columns, row, mask)
        else:
            tl.store(target + columns, tl.zeros([BLOCK], dtype=out_ptr.dtype.element_ty), mask)


def launch_embed_rows(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    table: Tensor,
    dtype: torch.dtype,
    scale: float | None,
    text_scale: float | None,
    *,
    aligned: bool,
    store: tl.dtype | None = None,
) -> None:
    """Launch on the current stream for every token, and for what `table` only stores; tokens whose row there
    is not of `dtype` are left out.
    """
    block, num_warps = block_shape(destination.hidden, destination.rows.device)
    out = destination.rows
    grid = (
        len(table) // (1 if store is None else 2),
        1 + destination.levels,
        triton.cdiv(destination.hidden, block),
    )
    if 0 in grid:
        return
    embed_rows_kernel[grid](
        table,
        destination.num_tokens,
        input_ids,
        weight,
        weight.stride(0),
        out,
        out.stride(0),
        *deepstack_arguments(destination),
        1.0 if scale is None else float(scale),
        # Rounded as the model's own buffer is, then multiplied in float32 and rounded once more.
        1.0 if text_scale is None else float(torch.tensor(text_scale, dtype=weight.dtype, device="cpu")),
        SOURCE=TRITON_DTYPES[dtype],
        STORE=store,
        HIDDEN=destination.hidden,
        HAS_SCALE=scale is not None,
        HAS_TEXT_SCALE=text_scale is not None,
        ALIGNED=aligned,
        BLOCK=block,
        num_warps=num_warps,
    )


def embed_rows(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    placement: Placement,
    scale: float | None,
    text_scale: float | None,
) -> None:
    """Launch on the current stream; arguments are checked already, ids of text tokens are the caller's
    promise.
    """
    device, num_tokens = destination.rows.device, destination.num_tokens
    with on_device(device):
        copy_host_blocks(destination, placement, scale)
        dtypes = placement.dtypes()
        dtype = dtypes[0] if dtypes and weight.dtype not in dtypes else weight.dtype
        native, kind, store = placement.native, KINDS[dtype], store_dtype(placement, dtype)
        if store is None:
            values, write = num_tokens, native.write_token_table
        else:
            values, write = 2 * (num_tokens + native.num_unplaced_rows(kind)), native.write_stored_token_table
        table = make_table(values, device, lambda address: write(kind, address, num_tokens))
        launch_embed_rows(
            destination,
            input_ids,
            weight,
            table,
            dtype,
            scale,
            text_scale,
            aligned=is_aligned(destination, placement, dtype),
            store=store,
        )
    scatter_rows(destination, placement, scale, skip=dtype)


def embed_table(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    table: PlacementTable,
    tokens: Tensor,
    scale: float | None,
    text_scale: float | None,
) -> None:
    """Launch with the addresses that `table` keeps for its tokens, so that a captured launch serves each
    update.
    """
    aligned = destination.hidden * table.dtype.itemsize % 16 == 0
    with on_device(destination.rows.device):
        launch_embed_rows(
            destination, input_ids, weight, tokens, table.dtype, scale, text_scale, aligned=aligned
        )
