"""The shape of a row kernel's block, by device and row width, from a table that a bench writes.

``python -m vitcache bench --bench blocks`` measures, ``python -m vitcache.bench.harness.tune FILE...`` turns
its results into `blocks.json`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton

TABLE = Path(__file__).with_name("blocks.json")

# For what is not in the table. On an H100 one program per row with 4096 elements and 8 warps came within 1 %
# of a copy, and narrower blocks and several rows per program did not (the design's sketches, 2026-11).
LARGEST_BLOCK = 4096
ELEMENTS_PER_WARP = 512


class BlockShape(NamedTuple):
    """Elements of a block and warps of a program."""

    block: int
    num_warps: int


@cache
def block_shape(hidden: int, device: torch.device) -> BlockShape:
    """The shape for rows of `hidden` elements on `device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    measured = read_table().get(name, {}).get(str(hidden))
    if measured is not None:
        return BlockShape(*measured)
    block = min(LARGEST_BLOCK, triton.next_power_of_2(max(hidden, 1)))
    return BlockShape(block, max(1, block // ELEMENTS_PER_WARP))


@cache
def read_table() -> dict[str, dict[str, list[int]]]:
    """Device name to row width to [block, warps]."""
    table: dict[str, dict[str, list[int]]] = json.loads(TABLE.read_text())
    return table
