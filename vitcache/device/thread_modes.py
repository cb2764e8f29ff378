"""Torch modes, current device and current streams of a caller, applied in a worker thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from vitcache.device.streams import check_names_one_stream

_AUTOCAST_DEVICES = ("cpu", "cuda")


class TorchModes:
    """Grad, inference and autocast modes, and the CUDA device, of the thread that called `capture`."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._inference = torch.is_inference_mode_enabled()
        self._autocast = [
            (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
            for device in _AUTOCAST_DEVICES
        ]
        self._cache = torch.is_autocast_cache_enabled()
        # `current_device` would initialize CUDA in a process that has not used it.
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    @classmethod
    def capture(cls) -> TorchModes:
        """Return the modes of the calling thread."""
        return cls()

    @contextmanager
    def apply(self, streams: Sequence[torch.cuda.Stream] = ()) -> Iterator[None]:
        """Apply the modes to the calling thread, and make each of `streams` current on its device.

        At the end of the context the thread's own modes, device and streams are restored.
        """
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
    """Return the calling thread's current streams that are not the default stream of their device.

    The current stream of the current device is always included. It is the last, because entering a stream
    also makes its device current.

    Raises
    ------
    RuntimeError
        If one of them is cudaStreamPerThread: a worker thread would enter its own stream of that name.
    """
    if not torch.cuda.is_initialized():
        return []
    current = torch.cuda.current_device()
    other_devices = [device for device in range(torch.cuda.device_count()) if device != current]
    streams = [torch.cuda.current_stream(device) for device in other_devices]
    # In a new thread the default stream is current already. Entering it would create a context on its device.
    side_streams = [stream for stream in streams if stream != torch.cuda.default_stream(stream.device)]
    entered = [*side_streams, torch.cuda.current_stream(current)]
    for stream in entered:
        check_names_one_stream(stream)
    return entered
