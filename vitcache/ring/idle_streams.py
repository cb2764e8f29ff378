"""Streams of closed rings, which later rings reuse. Any thread may call these functions."""

from __future__ import annotations

from collections import defaultdict

from vitcache._native import CudaRuntime, Stream

# Idle streams by device index. These streams are never destroyed: when torch frees memory that a ring wrote
# to, it records an event on the ring's stream, even if the ring was closed.
_idle: defaultdict[int, list[Stream]] = defaultdict(list)


def take_stream(runtime: CudaRuntime, device: int) -> Stream:
    """Return a stream of a CUDA device that no other ring uses."""
    try:
        return _idle[device].pop()
    except IndexError:
        return runtime.create_stream(device)


def give_stream_back(stream: Stream) -> None:
    """Keep the stream of a closed ring, or of a ring whose construction failed, for a later ring."""
    _idle[stream.device].append(stream)
