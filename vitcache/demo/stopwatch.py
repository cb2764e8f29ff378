"""Wall-clock time of work on a device."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Measures a ``with`` block, including the work that it queues on the device; `ms` are the milliseconds.

    The host waits for the device on entry, so that earlier work is not measured, and on exit.
    """

    def __init__(self, device: torch.device) -> None:
        self.ms = 0.0
        self._device = device

    def __enter__(self) -> Stopwatch:
        self._synchronize()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._synchronize()
        self.ms = (time.perf_counter() - self._start) * 1e3

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
