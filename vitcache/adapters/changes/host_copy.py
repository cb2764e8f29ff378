"""`HostCopy`: the copy of a small tensor in host memory."""

from __future__ import annotations

import torch
from torch import Tensor

from vitcache.device.capture import relaxed_capture_mode
from vitcache.device.streams import Event


class HostCopy:
    """The copy of a tensor in host memory, and later copies of tensors of its shape. Each `start` waits.

    One thread at a time may call.

    Attributes
    ----------
    is_late
        Whether `start` returns before the copy is complete.
    value
        The last copy that is complete.
    """

    is_late = False

    def __init__(self, source: Tensor) -> None:
        self.value = source.cpu()

    def start(self, source: Tensor) -> None:
        """Copy `source` behind the work of the current stream of its device."""
        self.value = source.cpu()

    def is_complete(self) -> bool:
        """Whether `value` is the copy of the last `start`."""
        return True

    def wait(self) -> None:
        """Block until `value` is the copy of the last `start`."""


class CudaHostCopy(HostCopy):
    """The copy of a CUDA tensor in pinned memory. The host waits only for the first copy, and in `wait`."""

    is_late = True

    def __init__(self, source: Tensor) -> None:
        super().__init__(source)
        with relaxed_capture_mode():
            self.value = self.value.pin_memory()
        self._event = Event()

    def start(self, source: Tensor) -> None:
        self.value.copy_(source, non_blocking=True)
        self._event.record(torch.cuda.current_stream(source.device))

    def is_complete(self) -> bool:
        return self._event.query()

    def wait(self) -> None:
        self._event.synchronize()


def copy_class(device: torch.device) -> type[HostCopy]:
    """Return the class that copies from `device`."""
    return CudaHostCopy if device.type == "cuda" else HostCopy
