"""Page-locked memory in an exact number of bytes."""

from __future__ import annotations

import contextlib
import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

# cudaHostRegisterPortable | cudaHostRegisterMapped: page-locked for every device, and readable by its
# kernels.
_REGISTER_FLAGS = 1 | 2


def allocate_pinned(num_bytes: int, device: torch.device) -> Tensor:
    """Return a uint8 tensor of `num_bytes` page-locked bytes, which kernels of every device can read.

    torch's own pinned allocator is not used: it rounds up to a power of two, above the budget.

    Raises
    ------
    MemoryError
        If the memory cannot be allocated or cannot be page-locked.
    """
    message = f"cannot page-lock {num_bytes} bytes; lower host_bytes or free host memory"
    try:
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{message}: {error}") from error
    array = np.frombuffer(memory, dtype=np.uint8)
    tensor = torch.from_numpy(array)
    cudart = torch.cuda.cudart()
    with torch.cuda.device(device):
        status = cudart.cudaHostRegister(tensor.data_ptr(), num_bytes, _REGISTER_FLAGS)
        if status != 0:
            # CUDA would report the error at the next launch as the error of that launch. This launch clears
            # the error.
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=device)
            raise MemoryError(f"{message}: {cudart.cudaGetErrorString(status)}")
    # Every view of the tensor keeps the array alive, so the memory is unregistered just before it is
    # unmapped. A finalizer of the mmap object would run after the unmapping. At exit the system frees the
    # memory.
    weakref.finalize(array, cudart.cudaHostUnregister, tensor.data_ptr()).atexit = False
    return tensor
