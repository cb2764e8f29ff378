"""Measure from which size on copies of pinned host memory are not slower than a kernel's reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.pages.pinned import allocate_pinned
from vitcache.placement import host_blocks
from vitcache.placement.destination import Destination
from vitcache.placement.host_blocks import ROW_WIDTH, Crossovers
from vitcache.placement.placement import Placement
from vitcache.placement.table_memory import table_memory_of

SIZES = [1 << power for power in range(16, 25)]  # 64 KiB to 16 MiB
# Bytes that a measurement moves. One block alone would mostly measure the start of a copy: with several
# queued blocks the copy engine starts the next copy during the last one, as it does for a prompt's images.
TOTAL_BYTES = 64 << 20
_REPEATS = 5
_SLEEP_CYCLES = 4_000_000

Times = Callable[[int], float]
Run = Callable[[Destination, Placement, int], None]


def calibrate(
    device: torch.device, kernel_us: Times, copy_us: Times, rows_us: Times | None = None
) -> Crossovers:
    """Measure and store, once per device, the sizes in bytes from which on copies are not slower.

    Parameters
    ----------
    kernel_us, copy_us, rows_us
        Given a size in bytes, return the microseconds for `TOTAL_BYTES` in pieces of that size: read by the
        kernel, copied as blocks, or copied as rows of two planes. Without `rows_us`, no rows are copied.

    Returns
    -------
    Crossovers
        For each form, the smallest of `SIZES` from which on no copy is slower than the kernel. None: the copy
        of the largest size is slower.
    """
    measured = host_blocks.measured_crossovers
    if device not in measured:
        kernel = {size: kernel_us(size) for size in SIZES}

        def crossover(us: Times | None) -> int | None:
            smallest: int | None = None
            for size in reversed(SIZES):
                if us is None or us(size) > kernel[size]:
                    break
                smallest = size
            return smallest

        measured[device] = Crossovers(crossover(copy_us), crossover(rows_us))
    return measured[device]


def calibrate_cuda(device: torch.device) -> Crossovers:
    """Run `calibrate` for a CUDA device, with times from CUDA events.

    The host waits for the device: call it at start-up, never in a forward pass. It takes about 0.3 seconds,
    and 64 MiB of pinned memory and of device memory, which are freed at the end.

    Raises
    ------
    MemoryError
        If the memory cannot be page-locked.
    CudaError
        If no CUDA runtime is found, or a call of it fails.
    torch.OutOfMemoryError
        If the device has too little memory.
    """
    device = torch.empty(0, device=device).device
    if device in host_blocks.measured_crossovers:
        return host_blocks.measured_crossovers[device]
    with torch.cuda.device(device), torch.inference_mode(False), torch.no_grad():
        pinned = allocate_pinned(TOTAL_BYTES, device, open_cuda_runtime())
        target = torch.empty_like(pinned, device=device)

        def times(planes: int, run: Run) -> Times:
            return lambda size: _median_us(*pieces(pinned, target, planes, size), run, size)

        kernel_us = times(1, run_kernel)(SIZES[-1])  # the same for every size
        table_memory_of(device).drop_read()  # the kernel's launches keep the pinned memory alive
        return calibrate(device, lambda size: kernel_us, times(1, run_copies), times(2, run_copies))


def pieces(
    pinned: Tensor, target: Tensor, planes: int, size: int
) -> tuple[Destination, list[Tensor], list[int]]:
    """Return a destination of all bytes of `target`, and items and spans that place all bytes of `pinned`.

    An item has `size` bytes for each of the destination's planes.
    """
    hidden = ROW_WIDTH // 2
    rows = pinned.view(torch.bfloat16).view(-1, planes * hidden)
    levels = target.view(torch.bfloat16).view(planes, -1, hidden)
    destination = Destination("target", levels[0], levels[1:] if planes > 1 else None)
    num_rows = size // ROW_WIDTH
    return destination, list(rows.split(num_rows)), list(range(0, len(rows), num_rows))


def run_kernel(destination: Destination, placement: Placement, _: int) -> None:
    """Let the kernel read all rows."""
    from vitcache.placement.gpu_kernels import scatter_rows  # needs Triton

    scatter_rows(destination, placement, None)  # nothing is measured yet, so nothing is copied


def run_copies(destination: Destination, placement: Placement, size: int) -> None:
    """Queue all rows as copies of `size` bytes: blocks in one call, rows of planes in one call each."""
    pending = host_blocks.copy_host_blocks(destination, placement, None, Crossovers(size, size))
    if pending is None:
        raise RuntimeError(f"the copy engine takes no block of {size} bytes")
    pending.join()


def _median_us(destination: Destination, items: list[Tensor], spans: list[int], run: Run, size: int) -> float:
    """Return the microseconds that the device needs for `run`."""
    times: list[float] = []
    for _ in range(_REPEATS):
        placement = Placement(destination, items, spans)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device sleeps while the host queues the work, so the events time only the device.
        torch.cuda._sleep(_SLEEP_CYCLES)
        begin.record()
        run(destination, placement, size)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[len(times) // 2]
