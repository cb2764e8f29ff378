"""Rows in pinned host memory: the copy engine copies long blocks, the kernel reads fragments.

A kernel reads host memory at the same speed for every block size. A copy engine is faster on long blocks and
slower on short ones. The crossover is measured once per device and process, when a cache with a host tier is
made. Without a measurement the kernel reads all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.rows import KINDS

# Bytes by device, written by `vitcache.placement.calibration`; see `crossover_bytes`.
measured_crossovers: dict[torch.device, int | None] = {}


def crossover_bytes(device: torch.device) -> int | None:
    """The smallest block in bytes that the copy engine of `device` copies. None: it copies no block."""
    return measured_crossovers.get(device)


def copy_host_blocks(destination: Destination, placement: Placement, scale: float | None) -> None:
    """Queue copies of long host blocks on the current stream, and remove their runs from the placement.

    A copy engine can only copy whole rows, unchanged, to adjacent rows. With a scale, deepstack levels or a
    strided destination, the kernel reads all rows.
    """
    rows = destination.rows
    threshold = crossover_bytes(rows.device) if placement.native.reads_host else None
    if threshold is None or scale is not None or destination.levels or not rows.is_contiguous():
        return
    row_bytes = destination.hidden * rows.element_size()
    for item, first, token, length in placement.native.take_host_blocks(
        KINDS[rows.dtype], row_bytes, threshold
    ):
        source = placement.items[item]
        pool = source if isinstance(source, Tensor) else source.pool
        rows[token : token + length].copy_(pool[first : first + length], non_blocking=True)
