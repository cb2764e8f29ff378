"""Page-locked memory in an exact number of bytes."""

from __future__ import annotations

import contextlib
import mmap
import weakref

import numpy as np
import torch
from torch import Tensor

# cudaHostRegisterPortable | cudaHostRegisterMapped: page-locked for every device, and read by its kernels.
_REGISTER_FLAGS = 1 | 2


def allocate_pinned(num_bytes: int, device: torch.device) -> Tensor:
    """Return page-locked bytes; torch's own pinned allocator rounds up to a power of two, past the budget.

    Raises
    ------
    MemoryError
        If they cannot be allocated, or not be page-locked.
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
            # Else the next kernel launch would find this error and report it as its own.
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=device)
            raise MemoryError(f"{message}: {cudart.cudaGetErrorString(status)}")
    # Every view of the tensor keeps the array alive, so this runs just before the memory goes: an mmap object
    # tells only after it. At exit the process takes its memory along.
    weakref.finalize(array, cudart.cudaHostUnregister, tensor.data_ptr()).atexit = False
    return tensor
