"""What a thread that works for another takes over from it: device, grad, inference and autocast modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda")


class CallerModes:
    """The modes of the thread that makes this."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = [
            (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
            for device in _AUTOCAST_DEVICES
        ]
        self._cache = torch.is_autocast_cache_enabled()
        # Asking a process that has not used CUDA would initialise it.
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    @contextmanager
    def taken_over(self, stream: torch.cuda.Stream | None = None) -> Iterator[None]:
        """Let the current thread have them meanwhile, and `stream` as its current one."""
        with ExitStack() as modes:
            if self._device is not None:
                modes.enter_context(torch.cuda.device(self._device))
            if stream is not None:
                modes.enter_context(torch.cuda.stream(stream))
            for device, dtype, enabled in self._autocast:
                modes.enter_context(
                    torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=self._cache)
                )
            modes.enter_context(torch.inference_mode(self._inference))
            modes.enter_context(torch.set_grad_enabled(self._grad))
            yield
