"""Features on their way to the encoder's device."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitcache.ring import PinnedRing
from vitcache.strided_view import as_source
from vitcache.ticket import Ticket

RING_BYTES = 128 << 20


class Moved(NamedTuple):
    """A feature on the encoder's device, or on its way there; `ticket` is None where it was there before."""

    tensor: Tensor
    ticket: Ticket | None

    def ready(self) -> Tensor:
        """Order the current stream behind the copy, and return the tensor."""
        if self.ticket is not None:
            self.ticket.wait()
            if self.tensor.device.type == "cuda":
                self.tensor.record_stream(torch.cuda.current_stream(self.tensor.device))
        return self.tensor

    def wait_source_read(self) -> None:
        """Wait on the host until the source may change: for the ring's threads, not for the device."""
        if self.ticket is not None:
            self.ticket.wait_source_read()


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
        self._lock = threading.Lock()

    def start(self, feature: Any) -> Moved:
        """Begin to move a feature, and return before it has arrived.

        Raises
        ------
        TypeError
            If it is neither a tensor nor an array, or of a dtype that torch has not.
        """
        if not isinstance(feature, Tensor | np.ndarray):
            raise TypeError(f"a feature must be a tensor or an array, it is {type(feature).__name__}")
        if isinstance(feature, Tensor):
            feature = feature.detach()
            if feature.device.type != "cpu":
                return Moved(self._cast(feature.to(self.device, non_blocking=True)), None)
        ring = self._ring_for_device()
        if ring is None:
            return Moved(self._cast(as_tensor(feature)), None)
        source = as_source(feature)
        dtype = self._dtype if self._dtype and source.dtype == torch.float32 else source.dtype
        # On the ring's stream nothing is in the way of the copy: not even an encode that is under way.
        with nullcontext() if ring.stream is None else torch.cuda.stream(ring.stream):
            target = torch.empty(source.shape, dtype=dtype, device=self.device)
        return Moved(target, ring.copy_to(target, feature, after=ring.stream))

    def close(self) -> None:
        """Close the ring if it was made here."""
        with self._lock:
            if self._owns_ring and self._ring is not None:
                self._ring.close()
                self._ring = None

    def _cast(self, feature: Tensor) -> Tensor:
        is_cast = self._dtype is not None and feature.dtype == torch.float32
        return feature.to(self._dtype) if is_cast else feature

    def _ring_for_device(self) -> PinnedRing | None:
        with self._lock:
            if self._ring is None and self.device.type == "cuda":
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
    source = as_source(feature)
    if not feature.flags.writeable or min(source.strides, default=0) < 0:
        feature = np.array(feature, order="C")
    return torch.from_numpy(feature)
