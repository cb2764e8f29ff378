"""What a thread that works for another takes over from it: its modes of torch, its device and streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda")


class TorchModes:
    """The modes of the thread that called `capture`."""

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

    @classmethod
    def capture(cls) -> TorchModes:
        """Return the modes of the calling thread."""
        return cls()

    @contextmanager
    def apply(self, streams: Sequence[torch.cuda.Stream] = ()) -> Iterator[None]:
        """Let the current thread have them meanwhile, and `streams` as the current ones of their devices."""
        with ExitStack() as modes:
            if self._device is not None:
                modes.enter_context(torch.cuda.device(self._device))
            for stream in streams:
                modes.enter_context(torch.cuda.stream(stream))
            for device, dtype, enabled in self._autocast:
                modes.enter_context(
                    torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=self._cache)
                )
            modes.enter_context(torch.inference_mode(self._inference))
            modes.enter_context(torch.set_grad_enabled(self._grad))
            yield


def current_streams() -> list[torch.cuda.Stream]:
    """The calling thread's streams where they are not the default, and last that of the current device."""
    if not torch.cuda.is_initialized():
        return []
    current = torch.cuda.current_device()
    others = [device for device in range(torch.cuda.device_count()) if device != current]
    streams = [torch.cuda.current_stream(device) for device in others]
    # To enter the default stream of a device would create a context on it, and change nothing.
    side = [stream for stream in streams if stream != torch.cuda.default_stream(stream.device)]
    return [*side, torch.cuda.current_stream(current)]
