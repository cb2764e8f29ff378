"""Page-locked memory in an exact number of bytes."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitcache._native import PinnedRegion, describe_available_host_bytes

if TYPE_CHECKING:
    from vitcache._native import CudaRuntime

# Most threads that touch new pages. Each page is zeroed by the system, at about the speed of a copy.
_MAX_THREADS = 8


def allocate_pinned(num_bytes: int, device: torch.device, runtime: CudaRuntime) -> Tensor:
    """Return a uint8 tensor of `num_bytes` page-locked bytes, which kernels of every device can read.

    Several threads touch the pages before they are locked: page-locking touches untouched pages in one
    thread. The memory is unlocked and freed with the last view of the tensor. In a forked child it is not
    mapped.

    torch's own pinned allocator is not used: it rounds up to a power of two, above the budget.

    Parameters
    ----------
    device
        The device that is current while the memory is locked. It need not be the current device.
    runtime
        The CUDA runtime of this process.

    Raises
    ------
    MemoryError
        If the memory cannot be allocated or cannot be page-locked.
    """
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    try:
        if num_bytes > sys.maxsize:
            raise MemoryError(describe_available_host_bytes())
        region = PinnedRegion(runtime, num_bytes, num_threads, device.index or 0)
    except MemoryError as error:
        raise MemoryError(
            f"cannot page-lock {num_bytes} bytes; lower host_bytes or free host memory: {error}"
        ) from error
    # The tensor and its views keep the region alive.
    return torch.frombuffer(region, dtype=torch.uint8, count=num_bytes)
