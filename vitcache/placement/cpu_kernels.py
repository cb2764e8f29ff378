"""The CPU's kernels: rows moved as bytes, by the table that a GPU would read. Casts and scales are the
reference's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache import _native
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.table_memory import table_memory_of
from vitcache.rows import KINDS


def moves_bits(destination: Destination, placement: Placement, *scales: float | None) -> bool:
    """Whether every row goes to its destination as it is."""
    return scales.count(None) == len(scales) and set(placement.dtypes()) <= {destination.rows.dtype}


def scatter_rows(destination: Destination, placement: Placement) -> None:
    """Scatter what `moves_bits` admits. Returns when it is written; uses as many threads as torch does."""
    kind = KINDS[destination.rows.dtype]
    num_rows = placement.native.num_rows(kind)
    table = table_memory_of(destination.rows.device).reserve(2 * num_rows).data_ptr()
    placement.native.write_row_table(kind, table)
    _native.scatter_rows(table, num_rows, *_planes(destination), torch.get_num_threads())


def embed_rows(destination: Destination, input_ids: Tensor, weight: Tensor, placement: Placement) -> None:
    """Build what `moves_bits` admits, from a weight of the destination's dtype. Text ids were checked."""
    num_tokens = destination.num_tokens
    table = table_memory_of(destination.rows.device).reserve(num_tokens).data_ptr()
    placement.native.write_token_table(KINDS[weight.dtype], table, num_tokens)
    rows = (weight.data_ptr(), weight.stride(0) * weight.element_size())
    _native.embed_rows(
        table,
        num_tokens,
        input_ids.data_ptr(),
        input_ids.element_size(),
        rows,
        *_planes(destination),
        torch.get_num_threads(),
    )


def _planes(destination: Destination) -> tuple[list[tuple[int, int]], int]:
    """Address and row stride of inputs_embeds and of each deepstack level, and the bytes of a row."""
    planes = [(plane.data_ptr(), plane.stride(0) * plane.element_size()) for plane in destination.planes]
    return planes, destination.hidden * destination.rows.element_size()
