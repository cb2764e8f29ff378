"""`LateCopies`: the copies of `read_back`, from a tensor on the CPU and as late as possible."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class LateCopies:
    """Stands for a device. Each copy is made as late as possible: when the caller waits for it."""

    def __init__(self) -> None:
        self.destinations: list[int] = []
        self.num_started = self.num_complete = 0

    def __call__(self, destination: Tensor, source: Tensor) -> Callable[[], None]:
        assert destination.shape == source.shape
        assert destination.is_contiguous()
        self.destinations.append(destination.data_ptr())
        self.num_started += 1

        def wait() -> None:
            destination.copy_(source)
            self.num_complete += 1

        return wait
