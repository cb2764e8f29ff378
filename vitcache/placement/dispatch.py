"""Choose how a placement runs on its device: the GPU's kernels, the CPU's kernels or the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache.device.streams import is_capturing
from vitcache.placement import cpu_kernels, reference
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.placement_table import PlacementTable


def uses_kernels(device: torch.device) -> bool:
    """Whether Triton kernels place the rows on `device`."""
    return device.type == "cuda"


def refuse_capture(device: torch.device) -> None:
    """Raise RuntimeError if a CUDA graph is being captured. Call it before anything is queued."""
    if is_capturing(device):
        raise RuntimeError(
            "this placement cannot be captured in a CUDA graph, its table is valid for one call only: "
            "use a PlacementTable"
        )


def scatter(destination: Destination, placement: Placement, scale: float | None) -> None:
    """Run one checked scatter on the destination's device."""
    if uses_kernels(destination.rows.device):
        from vitcache.placement import gpu_kernels

        gpu_kernels.scatter_rows(destination, placement, scale)
        return
    if placement.stored:
        placement.write_stores()
    if cpu_kernels.moves_bits(destination, placement, scale):
        cpu_kernels.scatter_rows(destination, placement)
    else:
        reference.scatter_embeddings(
            destination.rows, destination.deepstack, placement.segments(), placement.runs(), scale
        )


def scatter_table(destination: Destination, table: PlacementTable, scale: float | None) -> None:
    """`scatter` from a `PlacementTable`."""
    placement = table.bind(destination)
    if uses_kernels(destination.rows.device):
        from vitcache.placement import gpu_kernels

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
    if uses_kernels(destination.rows.device):
        from vitcache.placement import gpu_kernels

        gpu_kernels.embed_table(
            destination, input_ids.reshape(-1).contiguous(), weight, table, tokens, scale, text_scale
        )
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
    is_text_checked: bool = False,
) -> None:
    """Run one checked build of ``inputs_embeds`` on the destination's device.

    Raises
    ------
    IndexError
        If, on the CPU, the weight has no row for the id of a text token. `is_text_checked` skips this check.
    """
    ids = input_ids.reshape(-1).contiguous()  # the flattened view may be strided
    if uses_kernels(destination.rows.device):
        from vitcache.placement import gpu_kernels

        gpu_kernels.embed_rows(destination, ids, weight, placement, scale, text_scale)
        return
    if not is_text_checked:
        placement.check_text_ids(ids, len(weight))
    if placement.stored:
        placement.write_stores()
    if weight.dtype == destination.rows.dtype and cpu_kernels.moves_bits(
        destination, placement, scale, text_scale
    ):
        cpu_kernels.embed_rows(destination, ids, weight, placement)
    else:
        reference.embed_tokens(
            destination.rows,
            destination.deepstack,
            ids,
            weight,
            placement.segments(),
            placement.runs(),
            scale,
            text_scale,
        )
