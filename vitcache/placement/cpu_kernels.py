"""The CPU's kernels copy rows as bytes. They read the same table as a GPU kernel.

The module `reference` serves calls with casts or scales.
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
    """Whether every row is written unchanged: all dtypes are the destination's, and no scale is given."""
    return scales.count(None) == len(scales) and set(placement.dtypes()) <= {destination.rows.dtype}


def scatter_rows(destination: Destination, placement: Placement) -> None:
    """Scatter a placement for which `moves_bits` is true, with ``torch.get_num_threads()`` threads.

    Returns when all rows are written.
    """
    kind = KINDS[destination.rows.dtype]
    num_rows = placement.native.num_rows(kind)
    table = table_memory_of(destination.rows.device).reserve(2 * num_rows).data_ptr()
    placement.native.write_row_table(kind, table)
    _native.scatter_rows(table, num_rows, *_planes(destination), torch.get_num_threads())


def embed_rows(destination: Destination, input_ids: Tensor, weight: Tensor, placement: Placement) -> None:
    """Build ``inputs_embeds`` from a placement for which `moves_bits` is true.

    The weight must be of the destination's dtype. The caller has checked the ids of text tokens.
    """
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
    """Address and row stride in bytes of each plane, and the bytes of a row."""
    planes = [(plane.data_ptr(), plane.stride(0) * plane.element_size()) for plane in destination.planes]
    return planes, destination.hidden * destination.rows.element_size()
