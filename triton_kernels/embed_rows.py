"""Build ``inputs_embeds`` in one pass: rows of the weight at text tokens, image rows at all other tokens.

Bytes: one read and one write per row of the output, and one more write per stored row; the id and 8 bytes of
table per token, and 8 more if the launch stores rows or the deepstack levels are packed. Launches: one, and
one scatter for each further source dtype. The reference is `vitcache.placement.reference.embed_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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
    cast,
    describe_planes,
    load_image_row,
    row_pointer,
)

MOST_EMBEDDINGS = 1 << 32  # the kernel reads 32 bits of an id

ARGUMENTS = [
    "table_address",
    "num_tokens",
    "ids_address",
    "id_words",
    "weight_address",
    "weight_stride_row",
    "out_address",
    "out_stride_row",
    "deepstack_address",
    "deepstack_stride_level",
    "deepstack_stride_row",
    "scale",
    "text_scale",
]


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=ARGUMENTS)
def embed_rows_kernel(  # type: ignore[no-untyped-def]
    table_address: tl.int64,
    num_tokens: tl.int64,
    ids_address: tl.int64,
    id_words: tl.int64,
    weight_address: tl.int64,
    weight_stride_row: tl.int64,
    out_address: tl.int64,
    out_stride_row: tl.int64,
    deepstack_address: tl.int64,
    deepstack_stride_level: tl.int64,
    deepstack_stride_row: tl.int64,
    scale: tl.float32,
    text_scale: tl.float32,
    SOURCE: tl.constexpr,
    STORE: tl.constexpr,
    TARGET: tl.constexpr,
    WEIGHT: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_TEXT_SCALE: tl.constexpr,
    LISTED: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_NARROW: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per token, level and column block.

    The table has one int64 per token: the address of its image row, 0 for text, -1 if another launch writes
    the token. If the launch stores rows, a second int64 per token is the address in the page. Rows that are
    stored but not placed follow the tokens in the table. If `PACKED`, the last int64 per token is the row of
    the deepstack levels, which have no rows of text tokens.
    """
    token = tl.program_id(0).to(tl.int64)
    level = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < HIDDEN
    table = table_address.to(tl.pointer_type(tl.int64))
    # Only the low word of an id is read. The id of a text token is less than MOST_EMBEDDINGS.
    id_word = ids_address.to(tl.pointer_type(tl.uint32)) + token * id_words
    COLUMNS: tl.constexpr = (1 if STORE is None else 2) + (1 if PACKED else 0)
    level_row = tl.load(table + token * COLUMNS + COLUMNS - 1) if PACKED else token
    if STORE is None:
        address = tl.load(table + token * COLUMNS)
        page = address
        token_id = tl.load(id_word).to(tl.int64)
    else:
        address = tl.load(table + token * COLUMNS)
        page = tl.load(table + token * COLUMNS + 1)
        token_id = tl.load(id_word, token < num_tokens, other=0).to(tl.int64)
    if address != -1:
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
                TARGET,
                HIDDEN,
                HAS_SCALE,
                HAS_NARROW,
                ALIGNED,
            )
            if STORE is None or token < num_tokens:
                tl.store(target + columns, values, mask)
        elif level == 0:
            weight = weight_address.to(tl.pointer_type(WEIGHT)) + token_id * weight_stride_row
            if ALIGNED:
                weight = tl.multiple_of(weight, 16)
            row = tl.load(weight + columns, mask, other=0)
            if HAS_TEXT_SCALE:
                row = cast(row.to(tl.float32) * text_scale, WEIGHT)
            if WEIGHT != TARGET:
                row = cast(row.to(tl.float32), TARGET)
            tl.store(target + columns, row, mask)
        elif not PACKED:
            tl.store(target + columns, tl.zeros([BLOCK], dtype=TARGET), mask)


class EmbedVariant(NamedTuple):
    """The constants of one compiled build of ``inputs_embeds``."""

    device: int | None
    source: torch.dtype
    store: torch.dtype | None
    target: torch.dtype
    weight: torch.dtype
    hidden: int
    has_scale: bool
    has_text_scale: bool
    form: LevelForm
    is_aligned: bool
    shape: BlockShape

    def constants(self) -> dict[str, Any]:
        """The kernel's constants by name."""
        return {
            "SOURCE": TRITON_DTYPES[self.source],
            "STORE": None if self.store is None else TRITON_DTYPES[self.store],
            "TARGET": TRITON_DTYPES[self.target],
            "WEIGHT": TRITON_DTYPES[self.weight],
            "HIDDEN": self.hidden,
            "HAS_SCALE": self.has_scale,
            "HAS_TEXT_SCALE": self.has_text_scale,
            **self.form.constants(),
            "ALIGNED": self.is_aligned,
            "BLOCK": self.shape.block,
        }

    @property
    def num_warps(self) -> int:
        """Warps per program."""
        num_warps: int = self.shape.num_warps
        return num_warps


embed_kernel = RowKernel(embed_rows_kernel)


@lru_cache(maxsize=64)
def _round_scale(text_scale: float, dtype: torch.dtype) -> float:
    """The factor as a model stores it, in the weight's dtype. The kernel rounds the product again."""
    return float(torch.tensor(text_scale, dtype=dtype, device="cpu"))


def launch_embed_rows(
    table: Tensor,
    rows: Tensor,
    deepstack: Tensor | Sequence[Tensor] | None,
    input_ids: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    scale: float | None,
    text_scale: float | None,
    *,
    aligned: bool,
    store: torch.dtype | None = None,
    form: LevelForm = NO_LEVELS,
    level_address: int = 0,
) -> None:
    """Queue one launch on the current stream for all tokens, and for rows that are stored but not placed.

    Another launch writes the tokens with -1 in the table, because their rows are not of `dtype`.

    Parameters
    ----------
    table
        int64, in memory that the device can read. Its layout is described at `embed_rows_kernel`.
    input_ids, weight
        ``(T,)``, int64 or int32, and ``(V, H)``.
    dtype
        Dtype of the image rows.
    scale, text_scale
        Factors of the image rows and of the text rows, or None.
    rows, deepstack, aligned, store, form, level_address
        As in `launch_scatter_rows`.
    """
    num_tokens, hidden = rows.shape
    if weight.shape[0] > MOST_EMBEDDINGS:
        raise ValueError(f"weight has {weight.shape[0]} rows, on a GPU it may have at most {MOST_EMBEDDINGS}")
    num_programs = table.shape[0] // ((1 if store is None else 2) + form.is_packed)
    if num_programs == 0 or hidden == 0:
        return
    shape = block_shape(hidden, rows.device)
    planes = describe_planes(rows, deepstack, level_address)
    weight_address, weight_stride = weight.data_ptr(), weight.stride(0)
    is_weight_aligned = (weight_address | weight_stride * weight.element_size()) % 16 == 0
    variant = EmbedVariant(
        rows.device.index,
        dtype,
        store,
        rows.dtype,
        weight.dtype,
        hidden,
        scale is not None,
        text_scale is not None,
        form,
        aligned and planes.is_aligned and is_weight_aligned,
        shape,
    )
    arguments = (
        table.data_ptr(),
        num_tokens,
        input_ids.data_ptr(),
        input_ids.element_size() // 4,
        weight_address,
        weight_stride,
        *planes.arguments,
        1.0 if scale is None else scale,
        1.0 if text_scale is None else _round_scale(text_scale, weight.dtype),
    )
    embed_kernel.launch(variant, (num_programs, planes.num_planes, -(-hidden // shape.block)), arguments)
