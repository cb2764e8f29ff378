"""Build ``inputs_embeds`` in one pass: rows of the weight at text tokens, image rows at all other tokens.

Bytes: one read and one write per row of the output, and one more write per stored row; the id and 8 bytes of
table per token, or 16 if the launch stores rows. Launches: one, and one scatter for each further source
dtype. The reference is `vitcache.placement.reference.embed_tokens`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcache.triton_kernels.blocks import block_shape
from vitcache.triton_kernels.rows import (
    TRITON_DTYPES,
    cast,
    deepstack_arguments,
    load_image_row,
    num_planes,
    row_pointer,
)


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

    The table has one int64 per token: the address of its image row, 0 for text, -1 if another launch writes
    the token. If the launch stores rows, a second int64 per token is the address in the page. Rows that are
    stored but not placed follow the tokens in the table.
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
    table: Tensor,
    rows: Tensor,
    deepstack: Tensor | None,
    input_ids: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    scale: float | None,
    text_scale: float | None,
    *,
    aligned: bool,
    store: torch.dtype | None = None,
) -> None:
    """Queue one launch on the current stream for all tokens, and for rows that are stored but not placed.

    Another launch writes the tokens with -1 in the table, because their rows are not of `dtype`.

    Parameters
    ----------
    table
        int64, in memory that the device can read. Its layout is described at `embed_rows_kernel`.
    rows, deepstack
        The destination: ``(T, H)``, and ``(L, T, H)`` or None.
    input_ids, weight
        ``(T,)``, int64 or int32, and ``(V, H)``.
    dtype
        Dtype of the image rows.
    scale, text_scale
        Factors of the image rows and of the text rows, or None.
    aligned, store
        As in `launch_scatter_rows`.
    """
    num_tokens, hidden = rows.shape
    block, num_warps = block_shape(hidden, rows.device)
    grid = (
        len(table) // (1 if store is None else 2),
        num_planes(deepstack),
        triton.cdiv(hidden, block),
    )
    if 0 in grid:
        return
    embed_rows_kernel[grid](
        table,
        num_tokens,
        input_ids,
        weight,
        weight.stride(0),
        rows,
        rows.stride(0),
        *deepstack_arguments(rows, deepstack),
        1.0 if scale is None else float(scale),
        # Rounded to the weight's dtype, as a model stores this factor. The kernel rounds the product again.
        1.0 if text_scale is None else float(torch.tensor(text_scale, dtype=weight.dtype, device="cpu")),
        SOURCE=TRITON_DTYPES[dtype],
        STORE=None if store is None else TRITON_DTYPES[store],
        HIDDEN=hidden,
        HAS_SCALE=scale is not None,
        HAS_TEXT_SCALE=text_scale is not None,
        ALIGNED=aligned,
        BLOCK=block,
        num_warps=num_warps,
    )
