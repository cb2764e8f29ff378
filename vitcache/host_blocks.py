"""Rows in pinned host memory: long blocks go through the copy engine, fragments are read by the kernel.

A kernel reads host memory at one speed whatever the length; a copy engine is faster on long blocks and slower
on short ones. Where they meet is measured once per device and process, when a cache gets a host tier; without
that the kernel reads all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from vitcache.destination import Destination
from vitcache.dtypes import KINDS
from vitcache.placement import Placement

SIZES = [1 << power for power in range(16, 25)]  # 64 KiB to 16 MiB
_HIDE_CYCLES = 1_000_000
_crossover_bytes: dict[torch.device, int | None] = {}


def crossover_bytes(device: torch.device) -> int | None:
    """Bytes from which on a block goes through the copy engine of `device`; None: no block does."""
    return _crossover_bytes.get(device)


def calibrate(
    device: torch.device, kernel_us: Callable[[int], float], copy_us: Callable[[int], float]
) -> int | None:
    """Measure, once per device, from which size on copies are the faster ones, and remember it.

    Parameters
    ----------
    kernel_us, copy_us
        Microseconds that one block of so many bytes takes either way.
    """
    if device not in _crossover_bytes:
        crossover: int | None = None
        for size in reversed(SIZES):
            if copy_us(size) > kernel_us(size):
                break
            crossover = size
        _crossover_bytes[device] = crossover
    return _crossover_bytes[device]


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


def calibrate_cuda(device: torch.device) -> int | None:
    """`calibrate` with events on a CUDA device. Waits for the device: for start-up, never in a forward
    pass.
    """
    from vitcache.ops import scatter_embeddings

    width = 4096
    with torch.cuda.device(device), torch.no_grad():
        shape = SIZES[-1] // (2 * width), width
        pinned = torch.zeros(shape, dtype=torch.bfloat16, device="cpu", pin_memory=True)
        target = torch.empty_like(pinned, device=device)

        def measure(run: Callable[[int], object]) -> Callable[[int], float]:
            def microseconds(size: int) -> float:
                rows = size // (2 * width)
                times = []
                for _ in range(7):
                    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    torch.cuda._sleep(_HIDE_CYCLES)  # so that the host's part is not what is measured
                    begin.record()
                    run(rows)
                    end.record()
                    end.synchronize()
                    times.append(begin.elapsed_time(end) * 1e3)
                return float(statistics.median(times))

            return microseconds

        return calibrate(
            torch.empty(0, device=device).device,
            measure(lambda rows: scatter_embeddings(target, [pinned[:rows]], [0])),
            measure(lambda rows: target[:rows].copy_(pinned[:rows], non_blocking=True)),
        )
