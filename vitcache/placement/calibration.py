"""Measure the block size from which on a copy of pinned host memory is not slower than a kernel's reads."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vitcache.placement import host_blocks
from vitcache.placement.ops import scatter_embeddings

SIZES = [1 << power for power in range(16, 25)]  # 64 KiB to 16 MiB
_SLEEP_CYCLES = 1_000_000


def calibrate(
    device: torch.device, kernel_us: Callable[[int], float], copy_us: Callable[[int], float]
) -> int | None:
    """Measure and store, once per device, the block size in bytes from which on copies are not slower.

    Parameters
    ----------
    kernel_us, copy_us
        Given a size in bytes, return the microseconds in which the kernel reads one block of that size, or
        the copy engine copies it.

    Returns
    -------
    int or None
        The smallest of `SIZES` from which on no copy is slower than the kernel. None: the copy of the largest
        size is slower.
    """
    if device not in host_blocks.measured_crossovers:
        crossover: int | None = None
        for size in reversed(SIZES):
            if copy_us(size) > kernel_us(size):
                break
            crossover = size
        host_blocks.measured_crossovers[device] = crossover
    return host_blocks.measured_crossovers[device]


def calibrate_cuda(device: torch.device) -> int | None:
    """Run `calibrate` for a CUDA device, with times from CUDA events.

    The host waits for the device: call it at start-up, never in a forward pass.
    """
    width = 4096
    with torch.cuda.device(device), torch.no_grad():
        shape = SIZES[-1] // (2 * width), width
        pinned = torch.zeros(shape, dtype=torch.bfloat16, device="cpu", pin_memory=True)
        target = torch.empty_like(pinned, device=device)

        def measure(place: Callable[[int], object]) -> Callable[[int], float]:
            def microseconds(size: int) -> float:
                rows = size // (2 * width)
                times: list[float] = []
                for _ in range(7):
                    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    # The device sleeps while the host queues the work, so the events time only the device.
                    torch.cuda._sleep(_SLEEP_CYCLES)
                    begin.record()
                    place(rows)
                    end.record()
                    end.synchronize()
                    times.append(begin.elapsed_time(end) * 1e3)
                return sorted(times)[len(times) // 2]

            return microseconds

        return calibrate(
            torch.empty(0, device=device).device,
            measure(lambda rows: scatter_embeddings(target, [pinned[:rows]], [0])),
            measure(lambda rows: target[:rows].copy_(pinned[:rows], non_blocking=True)),
        )
