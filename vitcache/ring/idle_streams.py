"""Streams of rings that were closed, for the next ones. Any thread may call."""

from __future__ import annotations

from collections import defaultdict

import torch

from vitcache._native import CudaRuntime

# By device. They are never destroyed: when torch frees memory that a ring wrote to, it records an event on
# the ring's stream, be the ring closed or not.
_idle: defaultdict[torch.device, list[int]] = defaultdict(list)


def take_stream(runtime: CudaRuntime, device: torch.device) -> int:
    """Return a stream that no open ring uses."""
    try:
        return _idle[device].pop()
    except IndexError:
        with torch.cuda.device(device):
            return runtime.create_stream()


def give_stream_back(device: torch.device, stream: int) -> None:
    """Keep the stream of a ring that was closed, or could not be made, for the next one."""
    _idle[device].append(stream)
