"""From which size on the copy engine beats a kernel on pinned host memory: measured once per device."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from vitcache.placement import host_blocks
from vitcache.placement.ops import scatter_embeddings

SIZES = [1 << power for power in range(16, 25)]  # 64 KiB to 16 MiB
_HIDE_CYCLES = 1_000_000


def calibrate(
    device: torch.device, kernel_us: Callable[[int], float], copy_us: Callable[[int], float]
) -> int | None:
    """Measure, once per device, from which size on copies are the faster ones, and remember it.

    Parameters
    ----------
    kernel_us, copy_us
        Microseconds that one block of so many bytes takes either way.
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
    """`calibrate` with events on a CUDA device. Waits for the device: for start-up, never in a forward
    pass.
    """
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
