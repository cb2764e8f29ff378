"""Streams of rings that were closed, for the next ones. Any thread may call."""

from __future__ import annotations

from collections import defaultdict

from vitcache._native import CudaRuntime, Stream

# By device. They are never destroyed: when torch frees memory that a ring wrote to, it records an event on
# the ring's stream, be the ring closed or not.
_idle: defaultdict[int, list[Stream]] = defaultdict(list)


def take_stream(runtime: CudaRuntime, device: int) -> Stream:
    """Return a stream of a CUDA device that no open ring uses."""
    try:
        return _idle[device].pop()
    except IndexError:
        return runtime.create_stream(device)


def give_stream_back(stream: Stream) -> None:
    """Keep the stream of a ring that was closed, or could not be made, for the next one of its device."""
    _idle[stream.device].append(stream)
