"""Rows in pinned host memory: the copy engine copies long blocks, the kernel reads fragments.

A kernel reads host memory at the same speed for every block size. A copy engine is faster on long blocks and
slower on short ones. The crossovers are measured once per device and process, when a cache with a host tier
is made. Without a measurement the kernel reads all rows.

Copies: one batch for the blocks that are contiguous in both memories, and a two-dimensional copy per block
and plane for all others, such as the planes of deepstack rows. They run on a stream of their own, beside the
kernel of the same call: an event on each side orders them.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import NamedTuple

import torch

from vitcache._native import CopyEngine, PendingCopies, Stream
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement

# Bytes of a row in the measurement of two-dimensional copies: half a row of most models. A copy engine is
# slower on narrower rows, so the kernel reads these.
ROW_WIDTH = 4096


class Crossovers(NamedTuple):
    """The smallest copies that the copy engine makes, in bytes. None: it makes no copy of this form.

    Attributes
    ----------
    blocks
        Of a copy of adjacent rows to adjacent rows.
    rows
        Of a two-dimensional copy, whose rows have at least `ROW_WIDTH` bytes.
    """

    blocks: int | None
    rows: int | None


# Written by `vitcache.placement.calibration`.
measured_crossovers: dict[torch.device, Crossovers] = {}


def crossover_bytes(device: torch.device) -> int | None:
    """The smallest block in bytes that the copy engine of `device` copies. None: it copies no block."""
    measured = measured_crossovers.get(device)
    return None if measured is None else measured.blocks


@cache
def copy_engine(device: torch.device) -> CopyEngine:
    """The copy engine of `device`, with a stream of its own.

    Raises
    ------
    CudaError
        If no CUDA runtime is found, or a call of it fails.
    """
    return CopyEngine(open_cuda_runtime(), device.index or 0)


def copy_host_blocks(
    destination: Destination, placement: Placement, scale: float | None, crossovers: Crossovers | None = None
) -> PendingCopies | None:
    """Queue copies of long host blocks behind the current stream, and remove their runs from the placement.

    The caller queues the launches for the remaining runs, and then calls `join`, so that later work of the
    current stream waits for the copies. Until that work is complete, the caller keeps all rows alive.

    A copy engine copies rows unchanged: with a scale, the kernel reads all rows.

    Parameters
    ----------
    crossovers
        None: those that were measured for the device.

    Returns
    -------
    PendingCopies or None
        None: no block is long enough.
    """
    if scale is not None or not placement.native.reads_host:
        return None
    device = destination.device
    crossovers = crossovers or measured_crossovers.get(device)
    if crossovers is None:
        return None
    blocks, rows = (sys.maxsize if least is None else least for least in crossovers)
    return copy_engine(device).start(
        placement.native, destination.native, current_stream(device), blocks, rows, ROW_WIDTH
    )


def current_stream(device: torch.device) -> Stream:
    """The calling thread's current stream of `device`. On the CPU, the default stream of the stand-in."""
    handle = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return Stream(handle, device.index or 0)
