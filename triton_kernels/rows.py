"""What the row kernels share: a cast that rounds alike everywhere, and a row's load and address."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def cast(values, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """float32 to `DTYPE`, to nearest even.

    bfloat16 is rounded in integers: Triton's interpreter truncates where the hardware rounds, and one
    arithmetic on both lets a test on the CPU speak for the GPU.
    """
    if tl.bfloat16 == DTYPE:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(values != values, 0x7FC0, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(DTYPE)


@triton.jit
def load_image_row(  # type: ignore[no-untyped-def]
    address,
    page,
    level,
    columns,
    mask,
    scale,
    SOURCE: tl.constexpr,
    STORE: tl.constexpr,
    TARGET: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """``source[H * level : H * (level + 1)]`` of the row at `address`, scaled in float32, as `TARGET`.

    Where `STORE` is a dtype the row is rounded to it first, and written to `page` on the way: 0 is a row that
    is not stored, -1 one that another program stores.
    """
    source = address.to(tl.pointer_type(SOURCE)) + level * HIDDEN
    if ALIGNED:
        # After the cast to a pointer: on the integer the hint is lost, and with it 16-byte loads.
        source = tl.multiple_of(source, 16)
    values = tl.load(source + columns, mask, other=0)
    if STORE is not None:
        if SOURCE != STORE:
            values = values.to(tl.float32)
        if page != 0:
            stored = values
            if SOURCE != STORE:
                stored = cast(values, STORE)
                values = stored.to(tl.float32)
            if page != -1:
                target = page.to(tl.pointer_type(STORE)) + level * HIDDEN
                if ALIGNED:
                    target = tl.multiple_of(target, 16)
                tl.store(target + columns, stored, mask)
    if HAS_SCALE:
        values = cast(values.to(tl.float32) * scale, TARGET)
    elif values.dtype != TARGET:
        values = cast(values.to(tl.float32), TARGET)
    return values


@triton.jit
def row_pointer(  # type: ignore[no-untyped-def]
    token, level, out_ptr, out_stride_row, deepstack_ptr, deepstack_stride_level, deepstack_stride_row
):
    """Where a token's row of inputs_embeds (level 0) or of a deepstack level begins."""
    target = out_ptr + token * out_stride_row
    if level > 0:
        plane = deepstack_ptr + (level - 1).to(tl.int64) * deepstack_stride_level
        target = plane + token * deepstack_stride_row
    return target


def deepstack_arguments(rows: Tensor, deepstack: Tensor | None) -> tuple[Tensor, int, int]:
    """The deepstack levels as a kernel takes them. Without any, what stands for them is never touched."""
    return (rows, 0, 0) if deepstack is None else (deepstack, deepstack.stride(0), deepstack.stride(1))


def num_planes(deepstack: Tensor | None) -> int:
    """Planes that a launch writes: the rows, and each deepstack level."""
    return 1 if deepstack is None else 1 + deepstack.shape[0]
