"""Choose how a placement runs on its device: the GPU's kernels, the CPU's kernels or the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache import _native
from vitcache.device.streams import is_capturing
from vitcache.placement import reference
from vitcache.placement.destination import Destination, memory_check, row_stride
from vitcache.placement.placement import Placement
from vitcache.placement.placement_table import PlacementTable
from vitcache.rows import KINDS, check_extent


def uses_kernels(device: torch.device) -> bool:
    """Whether Triton kernels place the rows on `device`."""
    return device.type == "cuda"


def refuse_capture(device: torch.device) -> None:
    """Raise RuntimeError if a CUDA graph is being captured. Call it before anything is queued."""
    if device.type == "cuda" and is_capturing(device):
        raise RuntimeError(
            "this placement cannot be captured in a CUDA graph, its table is valid for one call only: "
            "use a PlacementTable"
        )


def flatten_ids(input_ids: Tensor) -> Tensor:
    """Return the ids of all tokens as a contiguous tensor ``(T,)``. Raises as `check_extent`."""
    check_extent("input_ids", input_ids)
    return input_ids.reshape(-1).contiguous()  # the flattened view may be strided


def describe_text(ids: Tensor, weight: Tensor) -> _native.TextTokens:
    """Describe contiguous ids and a weight that the native reader refuses, after `check_embedding`."""
    return _native.TextTokens(
        ids.data_ptr(),
        ids.element_size(),
        weight.data_ptr(),
        row_stride(weight),
        weight.shape[0],
        KINDS[weight.dtype],
    )


def scatter(destination: Destination, placement: Placement, scale: float | None) -> None:
    """Run one checked scatter on the destination's device. Raises as `Placement.check_memory`."""
    if uses_kernels(destination.device):
        from vitcache.placement import gpu_kernels

        placement.use()
        placement.check_memory(destination)
        gpu_kernels.scatter_rows(destination, placement, scale)
        return
    if placement.stored:
        placement.check_memory(destination)
        placement.write_stores()
    if scale is not None:
        placement.check_memory(destination)
    elif placement.native.scatter(
        memory_check,
        destination.native,
        destination.planes,
        placement.added_items if placement.added else placement.items,
        placement.added,
        torch.get_num_threads(),
    ):
        return
    reference.scatter_embeddings(
        destination.rows,
        destination.planes[1:],
        placement.segments(),
        placement.runs(),
        scale,
        is_packed=destination.num_packed is not None,
    )


def scatter_table(destination: Destination, table: PlacementTable, scale: float | None) -> None:
    """`scatter` from a `PlacementTable`."""
    placement = table.bind(destination)
    if uses_kernels(destination.device):
        from vitcache.placement import gpu_kernels

        placement.check_memory(destination)
        gpu_kernels.scatter_table(destination, table, scale)
        table.record_reader()
    else:
        scatter(destination, placement, scale)


def embed_table(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    table: PlacementTable,
    scale: float | None,
    text_scale: float | None,
) -> None:
    """`embed` from a `PlacementTable`."""
    placement, tokens = table.bind_tokens(destination)
    if uses_kernels(destination.device):
        from vitcache.placement import gpu_kernels

        ids = flatten_ids(input_ids)
        placement.check_memory(destination)
        text = describe_text(ids, weight)
        _native.check_text_memory(memory_check, destination.native, text, ids, weight)
        gpu_kernels.embed_table(destination, ids, weight, table, tokens, scale, text_scale)
        table.record_reader()
    else:
        embed(destination, input_ids, weight, placement, scale, text_scale)


def embed(
    destination: Destination,
    input_ids: Tensor,
    weight: Tensor,
    placement: Placement,
    scale: float | None,
    text_scale: float | None,
    *,
    text: _native.TextTokens | None = None,
) -> None:
    """Run one checked build of ``inputs_embeds`` on the destination's device.

    `text` describes `input_ids` and `weight`, if the caller has read them.

    Raises
    ------
    IndexError
        If, on the CPU, the weight has no row for the id of a text token.
    ValueError, TypeError, RuntimeError
        As `Placement.check_memory`, also for `input_ids` and `weight`.
    """
    ids = flatten_ids(input_ids) if text is None else input_ids
    if text is None:
        text = describe_text(ids, weight)
    if uses_kernels(destination.device):
        from vitcache.placement import gpu_kernels

        placement.use()
        placement.check_memory(destination)
        _native.check_text_memory(memory_check, destination.native, text, ids, weight)
        gpu_kernels.embed_rows(destination, ids, weight, placement, scale, text_scale)
        return
    is_copy = scale is None and text_scale is None
    if placement.stored or not is_copy:
        placement.check_memory(destination)
        _native.check_text_memory(memory_check, destination.native, text, ids, weight)
        placement.native.check_text_ids(memory_check, text, destination.num_tokens, ids)
    if placement.stored:
        placement.write_stores()
    if is_copy and placement.native.embed(
        memory_check,
        destination.native,
        destination.planes,
        placement.added_items if placement.added else placement.items,
        placement.added,
        text,
        ids,
        weight,
        torch.get_num_threads(),
    ):
        return
    reference.embed_tokens(
        destination.rows,
        destination.planes[1:],
        ids.reshape(-1),
        weight,
        placement.segments(),
        placement.runs(),
        scale,
        text_scale,
        is_packed=destination.num_packed is not None,
    )
