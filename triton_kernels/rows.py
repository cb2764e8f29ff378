"""Functions that both row kernels use: the cast, and the load and the address of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TRITON_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def cast(values, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Cast float32 to `DTYPE`, rounding to nearest even.

    bfloat16 is rounded in integer arithmetic. Triton's interpreter truncates where the hardware rounds. With
    integers both give the same bits, so that a test on the CPU is valid for the GPU.
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
    HAS_NARROW: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Columns ``[H * level, H * (level + 1))`` of the row at `address`, scaled in float32, as `TARGET`.

    If `STORE` is a dtype and `page` is not 0, the row is first rounded to `STORE`, and written to the address
    `page`. A `page` of 0 means that the row is not stored. A `page` of -1 means that another program stores
    the row: it is rounded, but not written.

    If `HAS_NARROW`, bit 0 of `address` marks a row that has columns for level 0 alone: at other levels the
    result is zeros, and nothing is stored.
    """
    if HAS_NARROW:
        has_columns = (level == 0) | ((address & 1) == 0)
        address = address - (address & 1)
        mask = columns < tl.where(has_columns, HIDDEN, 0)
    source = address.to(tl.pointer_type(SOURCE)) + level * HIDDEN
    if ALIGNED:
        # The hint must follow the cast to a pointer: on the integer it is lost, and the loads are narrower
        # than 16 bytes.
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
        if HAS_NARROW:  # a scale may make -0 or NaN of the zeros
            values = tl.where(has_columns, values, tl.zeros_like(values))
    elif values.dtype != TARGET:
        values = cast(values.to(tl.float32), TARGET)
    return values


@triton.jit
def row_pointer(  # type: ignore[no-untyped-def]
    token,
    level_row,
    level,
    out_address,
    out_stride_row,
    deepstack_address,
    deepstack_stride_level,
    deepstack_stride_row,
    TARGET: tl.constexpr,
    LISTED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Pointer to a token's row in ``inputs_embeds`` (level 0) or to row `level_row` of level ``level - 1``.

    If `LISTED`, `deepstack_address` is that of a table with two int64 per level: address and row stride.
    """
    target = out_address.to(tl.pointer_type(TARGET)) + token * out_stride_row
    if ALIGNED:  # a hint behind the branch would be lost
        target = tl.multiple_of(target, 16)
    if level > 0:
        if LISTED:
            entry = deepstack_address.to(tl.pointer_type(tl.int64)) + (level - 1) * 2
            target = tl.load(entry).to(tl.pointer_type(TARGET)) + level_row * tl.load(entry + 1)
        else:
            # The interpreter passes the address of empty levels, 0, as an int32.
            plane = deepstack_address.to(tl.int64).to(tl.pointer_type(TARGET))
            target = (
                plane + (level - 1).to(tl.int64) * deepstack_stride_level + level_row * deepstack_stride_row
            )
        if ALIGNED:
            target = tl.multiple_of(target, 16)
    return target


class Planes(NamedTuple):
    """The destination of a launch: the kernel's arguments, the number of planes, and their alignment."""

    arguments: tuple[int, int, int, int, int]  # in the order of `row_pointer`
    num_planes: int
    is_aligned: bool  # every row begins at a multiple of 16 bytes


class LevelForm(NamedTuple):
    """The constants of a kernel that depend on the deepstack levels."""

    is_listed: bool = False  # the levels are separate tensors, and the kernel reads their addresses
    is_packed: bool = False  # the levels have a row per placed token, and the table has its rank
    has_narrow: bool = False  # rows may have no columns for the levels

    def constants(self) -> dict[str, Any]:
        """The kernel's constants by name."""
        return {"LISTED": self.is_listed, "PACKED": self.is_packed, "HAS_NARROW": self.has_narrow}


NO_LEVELS = LevelForm()


def describe_planes(
    rows: Tensor, deepstack: Tensor | Sequence[Tensor] | None, level_address: int = 0
) -> Planes:
    """Describe the destination ``(T, H)`` and its deepstack levels.

    The levels are one tensor ``(L, T, H)``, or None, or a list of tensors ``(T, H)``. The kernel reads the
    addresses of a list at `level_address`.
    """
    address, stride, itemsize = rows.data_ptr(), rows.stride(0), rows.element_size()
    offsets = address | stride * itemsize
    if deepstack is None:
        return Planes((address, stride, 0, 0, 0), 1, offsets % 16 == 0)
    if not isinstance(deepstack, Tensor):
        for level in deepstack:
            offsets |= level.data_ptr() | level.stride(0) * itemsize
        return Planes((address, stride, level_address, 0, 0), 1 + len(deepstack), offsets % 16 == 0)
    first, (stride_level, stride_row, _) = deepstack.data_ptr(), deepstack.stride()
    offsets |= first | stride_level * itemsize | stride_row * itemsize
    arguments = address, stride, first, stride_level, stride_row
    return Planes(arguments, 1 + deepstack.shape[0], offsets % 16 == 0)
