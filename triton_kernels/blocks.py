"""The block shape of the row kernels, by device and row width, from a table that a bench writes.

``python -m vitcache bench --bench blocks`` measures the shapes. ``python -m vitcache.bench.harness.tune
FILE...`` writes the results to `blocks.json`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton

TABLE = Path(__file__).with_name("blocks.json")

# For devices and widths that are not in the table. On an H100, one program per row with 4096 elements and 8
# warps was within 1 % of a copy. Narrower blocks, and several rows per program, were not (the design's
# sketches, 2026-11).
LARGEST_BLOCK = 4096
ELEMENTS_PER_WARP = 512


class BlockShape(NamedTuple):
    """`block`: row elements per program. `num_warps`: warps per program."""

    block: int
    num_warps: int


@cache
def block_shape(hidden: int, device: torch.device) -> BlockShape:
    """The block shape for rows of `hidden` elements on `device`: the measured shape, or a default."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    measured = read_table().get(name, {}).get(str(hidden))
    if measured is not None:
        return BlockShape(*measured)
    block = min(LARGEST_BLOCK, triton.next_power_of_2(max(hidden, 1)))
    return BlockShape(block, max(1, block // ELEMENTS_PER_WARP))


@cache
def read_table() -> dict[str, dict[str, list[int]]]:
    """The measured shapes: device name to row width to [block, num_warps]."""
    table: dict[str, dict[str, list[int]]] = json.loads(TABLE.read_text())
    return table
