"""Rows in pinned host memory: long blocks go through the copy engine, fragments are read by the kernel.

A kernel reads host memory at one speed whatever the length; a copy engine is faster on long blocks and slower
on short ones. Where they meet is measured once per device and process, when a cache gets a host tier; without
that the kernel reads all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.rows import KINDS

# By device; what `vitcache.placement.calibration` has measured.
measured_crossovers: dict[torch.device, int | None] = {}


def crossover_bytes(device: torch.device) -> int | None:
    """Bytes from which on a block goes through the copy engine of `device`; None: no block does."""
    return measured_crossovers.get(device)


def copy_host_blocks(destination: Destination, placement: Placement, scale: float | None) -> None:
    """Queue the copies of long host blocks on the current stream, and leave the rest in the placement.

    Only what a copy engine can do: whole rows, unchanged, into adjacent rows.
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
