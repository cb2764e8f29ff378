"""Choose how a placement runs on its device: the GPU's kernels, the CPU's kernels or the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache import _native
from vitcache.device.streams import is_capturing
from vitcache.placement import reference
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.placement_table import PlacementTable
from vitcache.rows import KINDS


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
    """Return the ids of all tokens as a contiguous tensor ``(T,)``."""
    return input_ids.reshape(-1).contiguous()  # the flattened view may be strided


def describe_text(ids: Tensor, weight: Tensor) -> _native.TextTokens:
    """Describe contiguous ids and a weight that the native reader refuses, after `check_embedding`."""
    return _native.TextTokens(
        ids.data_ptr(),
        ids.element_size(),
        weight.data_ptr(),
        weight.stride(0) * weight.element_size(),
        weight.shape[0],
        KINDS[weight.dtype],
    )


def scatter(destination: Destination, placement: Placement, scale: float | None) -> None:
    """Run one checked scatter on the destination's device."""
    if uses_kernels(destination.device):
        from vitcache.placement import gpu_kernels

        placement.use()
        gpu_kernels.scatter_rows(destination, placement, scale)
        return
    if placement.stored:
        placement.write_stores()
    if scale is not None or not placement.native.scatter(destination.native, torch.get_num_threads()):
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

        gpu_kernels.embed_table(destination, flatten_ids(input_ids), weight, table, tokens, scale, text_scale)
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
    is_text_checked: bool = False,
) -> None:
    """Run one checked build of ``inputs_embeds`` on the destination's device.

    `text` describes `input_ids` and `weight`, if the caller has read them.

    Raises
    ------
    IndexError
        If, on the CPU, the weight has no row for the id of a text token. `is_text_checked` skips this check.
    """
    ids = flatten_ids(input_ids) if text is None else input_ids
    if uses_kernels(destination.device):
        from vitcache.placement import gpu_kernels

        placement.use()
        gpu_kernels.embed_rows(destination, ids, weight, placement, scale, text_scale)
        return
    if text is None:
        text = describe_text(ids, weight)
    if not is_text_checked:
        placement.native.check_text_ids(text, destination.num_tokens)
    if placement.stored:
        placement.write_stores()
    is_copy = scale is None and text_scale is None
    if not is_copy or not placement.native.embed(destination.native, text, torch.get_num_threads()):
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
