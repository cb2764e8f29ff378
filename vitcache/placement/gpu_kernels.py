"""Launch the GPU's kernels: lower a placement to the table that a launch reads, then launch.

The kernels are in `vitcache.triton_kernels`. This module is imported when the first placement runs on a GPU,
because Triton may be missing on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

import vitcache.placement.kernel_variants  # noqa: F401 - guards the loading of the kernels
from vitcache._native import PendingCopies
from vitcache.device.streams import is_capturing
from vitcache.placement.destination import Destination
from vitcache.placement.host_blocks import copy_host_blocks
from vitcache.placement.placement import Placement
from vitcache.placement.placement_table import PlacementTable
from vitcache.placement.table_memory import table_memory_of
from vitcache.rows import KINDS
from vitcache.triton_kernels.embed_rows import launch_embed_rows
from vitcache.triton_kernels.rows import NO_LEVELS, LevelForm
from vitcache.triton_kernels.scatter_rows import launch_scatter_rows


def scatter_rows(destination: Destination, placement: Placement, scale: float | None) -> None:
    """Queue one launch per source dtype, and copies of long host blocks. Arguments must be checked.

    All of it is ordered behind earlier and before later work of the current stream.
    """
    with _on_device(destination.device):
        copies = None
        try:
            copies = copy_host_blocks(destination, placement, scale)
            _launch_scatters(destination, placement, scale)
        finally:
            _finish(copies, placement, destination.device)


def _launch_scatters(
    destination: Destination, placement: Placement, scale: float | None, skip: torch.dtype | None = None
) -> None:
    """Queue one launch per source dtype, except `skip`."""
    for dtype in placement.dtypes():
        if dtype == skip:
            continue
        native, kind, store = placement.native, KINDS[dtype], _store_dtype(placement, dtype)
        num_rows, columns, write = native.num_rows(kind), 2, native.write_row_table
        if store is not None:
            num_rows += native.num_unplaced_rows(kind)
            columns, write = 3, native.write_stored_row_table
        form = _form(destination, placement, kind)
        table, level_address = _make_table(
            (columns + form.is_packed) * num_rows,
            destination,
            partial(write, kind, has_ranks=form.is_packed),
        )
        launch_scatter_rows(
            table,
            destination.rows,
            _levels(destination),
            dtype,
            scale,
            aligned=_is_aligned(destination, placement, dtype, store),
            store=store,
            form=form,
            level_address=level_address,
        )


def scatter_table(destination: Destination, table: PlacementTable, scale: float | None) -> None:
    """Queue one launch for all `max_rows` rows of `table`, so that a captured launch serves every update."""
    aligned = destination.hidden * table.dtype.itemsize % 16 == 0
    with _on_device(destination.device):
        launch_scatter_rows(
            table.rows,
            destination.rows,
            _levels(destination),
            table.dtype,
            scale,
            aligned=aligned,
            has_holes=True,
            form=_form(destination),
            level_address=_level_address(destination, table),
        )


def embed_rows(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    placement: Placement,
    scale: float | None,
    text_scale: float | None,
) -> None:
    """Queue one launch for all tokens, and one scatter per further source dtype, on the current stream.

    Arguments must be checked. The caller ensures that the weight has a row for the id of each text token.
    """
    with _on_device(destination.device):
        copies = None
        try:
            copies = copy_host_blocks(destination, placement, scale)
            launched = _launch_embed(destination, input_ids, weight, placement, scale, text_scale)
            _launch_scatters(destination, placement, scale, skip=launched)
        finally:
            _finish(copies, placement, destination.device)


def _launch_embed(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    placement: Placement,
    scale: float | None,
    text_scale: float | None,
) -> torch.dtype:
    """Queue one launch for all tokens; return the dtype of the image rows that it places."""
    num_tokens, dtypes = destination.num_tokens, placement.dtypes()
    dtype = dtypes[0] if dtypes and weight.dtype not in dtypes else weight.dtype
    native, kind, store = placement.native, KINDS[dtype], _store_dtype(placement, dtype)
    num_rows, columns, write = num_tokens, 1, native.write_token_table
    if store is not None:
        num_rows += native.num_unplaced_rows(kind)
        columns, write = 2, native.write_stored_token_table
    form = _form(destination, placement, kind)
    table, level_address = _make_table(
        (columns + form.is_packed) * num_rows,
        destination,
        partial(write, kind, num_tokens=num_tokens, has_ranks=form.is_packed),
    )
    launch_embed_rows(
        table,
        destination.rows,
        _levels(destination),
        input_ids,
        weight,
        dtype,
        scale,
        text_scale,
        aligned=_is_aligned(destination, placement, dtype, store),
        store=store,
        form=form,
        level_address=level_address,
    )
    return dtype


def embed_table(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    table: PlacementTable,
    tokens: Tensor,
    scale: float | None,
    text_scale: float | None,
) -> None:
    """Queue one launch that reads the row addresses `tokens` of `table`.

    A captured launch serves every update, because `PlacementTable.update` writes these addresses.
    """
    aligned = destination.hidden * table.dtype.itemsize % 16 == 0
    with _on_device(destination.device):
        launch_embed_rows(
            tokens,
            destination.rows,
            _levels(destination),
            input_ids,
            weight,
            table.dtype,
            scale,
            text_scale,
            aligned=aligned,
            form=_form(destination),
            level_address=_level_address(destination, table),
        )


def _levels(destination: Destination) -> Tensor | list[Tensor] | None:
    return destination.planes[1:] if destination.is_listed else destination.deepstack


def _level_address(destination: Destination, table: PlacementTable) -> int:
    """The address of a level table for a launch that reads a `PlacementTable`; 0 without a list of levels."""
    if not destination.is_listed:
        return 0
    if is_capturing(destination.device):
        return table.level_address(destination)
    address = table_memory_of(destination.device).reserve(2 * destination.levels).data_ptr()
    destination.native.write_level_table(address)
    return address


def _form(destination: Destination, placement: Placement | None = None, kind: int = 0) -> LevelForm:
    """The form of the levels for a launch that places rows of `kind`, or for that of a `PlacementTable`."""
    if destination.levels == 0:
        return NO_LEVELS
    has_narrow = placement is not None and placement.native.has_narrow(kind)
    return LevelForm(destination.is_listed, destination.is_packed, has_narrow)


def _store_dtype(placement: Placement, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype in which a launch for rows of `dtype` stores rows, or None if it stores none."""
    store = placement.store_dtype
    return store if store is not None and placement.native.stores(KINDS[dtype]) else None


def _is_aligned(
    destination: Destination, placement: Placement, dtype: torch.dtype, store: torch.dtype | None
) -> bool:
    """Whether every level of every row of `dtype`, and of its pages, begins at a multiple of 16 bytes."""
    itemsize = dtype.itemsize if store is None else min(dtype.itemsize, store.itemsize)
    return destination.hidden * itemsize % 16 == 0 and placement.native.aligned(KINDS[dtype])


def _make_table(values: int, destination: Destination, fill: Callable[[int], None]) -> tuple[Tensor, int]:
    """Reserve an int64 table that a launch reads in place; `fill(address)` writes it.

    Returns the table, and the address of the level table behind it, or 0 if the levels are not listed.
    """
    memory = table_memory_of(destination.device)
    if not destination.is_listed:
        table = memory.reserve(values)
        fill(table.data_ptr())
        return table, 0
    # One reservation for both tables: a second one could reuse the memory of the first.
    table = memory.reserve(values + 2 * destination.levels)
    address = table.data_ptr()
    level_address = address + 8 * values
    fill(address)
    destination.native.write_level_table(level_address)
    return table.narrow(0, 0, values), level_address


def _finish(copies: PendingCopies | None, placement: Placement, device: torch.device) -> None:
    """Order the current stream after `copies`, and keep pinned tensors alive until they have been read.

    torch's pinned memory allocator knows the copies that torch has queued, but no kernels and none of these
    copies: it would reuse memory that the device still reads. That is also true of copies that were queued
    before a call failed.
    """
    try:
        if copies is not None:
            copies.join()
    finally:
        if placement.native.reads_host:
            _keep_pinned_alive(placement, device)


def _keep_pinned_alive(placement: Placement, device: torch.device) -> None:
    pinned = [item for item in placement.added_items if isinstance(item, Tensor) and item.device != device]
    if pinned:
        table_memory_of(device).keep_alive(pinned)


def _on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` current for a launch. Does nothing if `device` is current already."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
