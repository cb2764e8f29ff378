"""Features on their way to the encoder's device."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitcache.device.streams import record_event
from vitcache.ring.arguments import as_strided_view
from vitcache.ring.pinned_ring import PinnedRing
from vitcache.ring.ticket import Ticket

RING_BYTES = 128 << 20


class MovedFeature(NamedTuple):
    """A feature on the encoder's device, or on its way there: through a ring, or behind an event."""

    tensor: Tensor
    ticket: Ticket | None = None
    event: Any = None

    def ready(self) -> Tensor:
        """Order the current stream behind the copy, and return the tensor."""
        if self.ticket is not None:
            self.ticket.wait()
        if self.tensor.device.type == "cuda":
            stream = torch.cuda.current_stream(self.tensor.device)
            if self.event is not None:
                stream.wait_event(self.event)
            self.tensor.record_stream(stream)
        return self.tensor


class FeatureMover:
    """Moves features to one device: everything that is not there goes through the ring, on its stream.

    Parameters
    ----------
    device
        Where the encoder is.
    ring
        None: on CUDA, one of `RING_BYTES` is made for the first feature; on the CPU nothing is moved.
    dtype
        What float32 features are cast to on the way, bfloat16 or float16. None: they stay as they are.

    Notes
    -----
    Any thread may use it.
    """

    def __init__(self, device: torch.device, ring: PinnedRing | None, dtype: torch.dtype | None) -> None:
        self.device = device
        self._ring = ring
        self._owns_ring = ring is None
        self._dtype = dtype
        self._is_closed = False
        self._lock = threading.Lock()

    def start(self, feature: Any, *, is_cast: bool = True) -> MovedFeature:
        """Begin to move a feature, and return before it has arrived.

        Parameters
        ----------
        is_cast
            False: it keeps its dtype, whatever features are cast to.

        Raises
        ------
        TypeError
            If it is neither a tensor nor an array, or of a dtype that torch has not.
        """
        if not isinstance(feature, Tensor | np.ndarray):
            raise TypeError(f"a feature must be a tensor or an array, it is {type(feature).__name__}")
        if isinstance(feature, Tensor):
            feature = feature.detach()
        # What waits here for another step must not be bound to the modes of this one.
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(feature, Tensor) and feature.device.type != "cpu":
                dtype = self._dtype_for(feature.dtype, is_cast)
                # The host may read what comes to it at once.
                there = feature.to(self.device, dtype, non_blocking=self.device.type != "cpu")
                return MovedFeature(there, event=record_event(self.device))
            ring = self._ring_for_device()
            if ring is None:
                tensor = as_tensor(feature)
                return MovedFeature(tensor.to(self.device, self._dtype_for(tensor.dtype, is_cast)))
            source = as_strided_view(feature)
            dtype = self._dtype_for(source.dtype, is_cast)
            # On the ring's stream nothing is in the way of the copy: not even an encode that is under way.
            with nullcontext() if ring.stream is None else torch.cuda.stream(ring.stream):
                target = torch.empty(source.shape, dtype=dtype, device=self.device)
            return MovedFeature(target, ring.copy_to(target, feature, after=ring.stream))

    def close(self) -> None:
        """Close the ring if it was made here, and make none any more."""
        with self._lock:
            self._is_closed = True
            if self._owns_ring and self._ring is not None:
                self._ring.close()
                self._ring = None

    def _dtype_for(self, dtype: torch.dtype, is_cast: bool) -> torch.dtype:
        return self._dtype if is_cast and self._dtype is not None and dtype == torch.float32 else dtype

    def _ring_for_device(self) -> PinnedRing | None:
        with self._lock:
            if self._ring is None and self.device.type == "cuda":
                if self._is_closed:
                    raise RuntimeError("the pipeline was closed")
                self._ring = PinnedRing(RING_BYTES, backend="cuda", device=self.device)
            return self._ring


def as_tensor(feature: Tensor | np.ndarray) -> Tensor:
    """Return a CPU tensor over an array's memory, or over a copy where torch cannot take it as it is.

    Raises
    ------
    TypeError
        If torch has no such dtype.
    """
    if isinstance(feature, Tensor):
        return feature
    source = as_strided_view(feature)
    if not feature.flags.writeable or min(source.strides, default=0) < 0:
        feature = np.array(feature, order="C")
    return torch.from_numpy(feature)
