"""Build ``inputs_embeds``: the row of the weight at text tokens, the row of an image elsewhere, in one pass.

Bytes: one read and one write per row of the output, plus 8 bytes of table and the id per token. Launches: one, and one
scatter for each further source dtype. The truth is `vitcache.reference.embed_tokens`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitcache.placement import KINDS, Destination, Placement
from vitcache.triton_kernels.rows import TRITON_DTYPES, block_shape, cast, make_table, on_device
from vitcache.triton_kernels.scatter_rows import scatter_rows


@triton.jit
def embed_rows_kernel(  # type: ignore[no-untyped-def]
    table_ptr,
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
    HIDDEN: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_TEXT_SCALE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per token, level and column block.

    The table holds one int64 per token: the address of its image row, 0 for text, -1 for a row of another launch.
    """
    token = tl.program_id(0).to(tl.int64)
    level = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    address = tl.load(table_ptr + token)
    token_id = tl.load(ids_ptr + token).to(tl.int64)
    if address != -1:
        if level == 0:
            target = out_ptr + token * out_stride_row
        else:
            plane = deepstack_ptr + (level - 1).to(tl.int64) * deepstack_stride_level
            target = plane + token * deepstack_stride_row
        if address != 0:
            source = address.to(tl.pointer_type(SOURCE)) + level * HIDDEN
            if ALIGNED:
                source = tl.multiple_of(source, 16)
            values = tl.load(source + columns, mask, other=0)
            if HAS_SCALE:
                values = cast(values.to(tl.float32) * scale, out_ptr.dtype.element_ty)
            elif SOURCE != out_ptr.dtype.element_ty:
                values = cast(values.to(tl.float32), out_ptr.dtype.element_ty)
            tl.store(target + columns, values, mask)
        elif level == 0:
            row = tl.load(weight_ptr + token_id * weight_stride_row + columns, mask, other=0)
            if HAS_TEXT_SCALE:
                row = cast(row.to(tl.float32) * text_scale, weight_ptr.dtype.element_ty)
            if weight_ptr.dtype.element_ty != out_ptr.dtype.element_ty:
                row = cast(row.to(tl.float32), out_ptr.dtype.element_ty)
            tl.store(target + columns, row, mask)
        else:
            tl.store(target + columns, tl.zeros([BLOCK], dtype=out_ptr.dtype.element_ty), mask)


def embed_rows(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    placement: Placement,
    scale: float | None,
    text_scale: float | None,
) -> None:
    """Launch on the current stream; arguments are checked already, ids of text tokens are the caller's promise."""
    if destination.num_tokens == 0 or destination.hidden == 0:
        return
    block, num_warps = block_shape(destination.hidden)
    out = destination.rows
    deepstack = out[None] if destination.deepstack is None else destination.deepstack
    dtypes = placement.dtypes()
    dtype = dtypes[0] if dtypes and weight.dtype not in dtypes else weight.dtype
    kind = KINDS[dtype]
    rounded = None if text_scale is None else float(torch.tensor(text_scale, dtype=weight.dtype))
    aligned = placement.native.aligned(kind) and destination.hidden * dtype.itemsize % 16 == 0
    with on_device(out.device):
        table = make_table(
            destination.num_tokens,
            out.device,
            lambda address: placement.native.write_token_table(kind, address, destination.num_tokens),
        )
        grid = (destination.num_tokens, 1 + destination.levels, triton.cdiv(destination.hidden, block))
        embed_rows_kernel[grid](
            table,
            input_ids,
            weight,
            weight.stride(0),
            out,
            out.stride(0),
            deepstack,
            deepstack.stride(0),
            deepstack.stride(1),
            1.0 if scale is None else float(scale),
            1.0 if rounded is None else rounded,
            SOURCE=TRITON_DTYPES[dtype],
            HIDDEN=destination.hidden,
            HAS_SCALE=scale is not None,
            HAS_TEXT_SCALE=rounded is not None,
            ALIGNED=aligned,
            BLOCK=block,
            num_warps=num_warps,
        )
    scatter_rows(destination, placement, scale, skip=dtype)
