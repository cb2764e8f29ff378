"""`FeatureMover`: copies features to the encoder's device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitcache.device.locks import new_lock
from vitcache.device.streams import record_event
from vitcache.ring.arguments import as_strided_view
from vitcache.ring.pinned_ring import MIN_BYTES, PinnedRing
from vitcache.ring.ticket import Ticket
from vitcache.rows import check_extent
from vitcache.tracing import traced

# Enough for the features of two micro-batches, so that the second one is queued before the encode of the
# first one is called. By default, each has two images of 1920x1080, of 50 MB in float32.
RING_BYTES = 256 << 20


class MovedFeature(NamedTuple):
    """A feature in a tensor on the encoder's device; its copy may still be in flight.

    Attributes
    ----------
    tensor
        The feature.
    ticket
        The ticket of the copy, if it is through a ring.
    event
        The event behind the copy, if it is not through a ring and the device is CUDA.
    """

    tensor: Tensor
    ticket: Ticket | None = None
    event: Any = None

    def ready(self) -> Tensor:
        """Let the current stream wait for the copy, and return the tensor. On the CPU the host waits."""
        if self.ticket is not None:
            self.ticket.wait()
        if self.tensor.device.type == "cuda":
            stream = torch.cuda.current_stream(self.tensor.device)
            if self.event is not None:
                stream.wait_event(self.event)
            self.tensor.record_stream(stream)
        return self.tensor


class UnmovedFeature(NamedTuple):
    """A feature that reaches the encoder unchanged: any object."""

    feature: Any
    ticket: None = None

    def ready(self) -> Any:
        """Return the feature."""
        return self.feature


class FeatureMover:
    """Moves features to one device: features in host memory through a ring, on the ring's stream.

    Parameters
    ----------
    device
        Device of the encoder.
    ring
        The ring. None: on CUDA the first feature makes a ring of `RING_BYTES`; on the CPU features stay in
        their memory, or are cast.
    dtype
        bfloat16 or float16: float32 features are cast to it. None: features keep their dtype.

    Notes
    -----
    Any thread may call any method.
    """

    def __init__(self, device: torch.device, ring: PinnedRing | None, dtype: torch.dtype | None) -> None:
        self.device = device
        self._ring = ring
        self._owns_ring = ring is None
        self._dtype = dtype
        self._is_closed = False
        self._lock = new_lock()

    @traced("copy")
    def start(self, feature: Any, *, is_cast: bool = True) -> MovedFeature:
        """Start to move a feature; its copy may still be in flight on return.

        Parameters
        ----------
        is_cast
            False: the feature keeps its dtype.

        Raises
        ------
        TypeError
            If the feature is not a tensor or a NumPy array, or torch has no dtype like the array's.
        RuntimeError
            If the mover is closed and would have to make a ring.
        """
        if not isinstance(feature, Tensor | np.ndarray):
            raise TypeError(f"a feature must be a tensor or a NumPy array, got {type(feature).__name__}")
        if isinstance(feature, Tensor):
            feature = feature.detach()
            if feature.layout is torch.strided and not feature.is_nested:
                check_extent("feature", feature)
        # A later step may use the tensor in grad mode, where autograd refuses tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(feature, Tensor) and feature.device.type != "cpu":
                dtype = self._dtype_for(feature.dtype, is_cast)
                # A copy to the CPU must be complete on return: the host may read it at once.
                tensor = feature.to(self.device, dtype, non_blocking=self.device.type != "cpu")
                return MovedFeature(tensor, event=record_event(self.device))
            ring = self._ring_for_device()
            if ring is None:
                tensor = as_tensor(feature)
                return MovedFeature(tensor.to(self.device, self._dtype_for(tensor.dtype, is_cast)))
            source = as_strided_view(feature)
            dtype = self._dtype_for(source.dtype, is_cast)
            return self.start_into(self.empty(source.shape, dtype), feature)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate a tensor on the device, whose slices are targets of `start_into`.

        Raises
        ------
        RuntimeError
            If the mover is closed and would have to make a ring.
        """
        ring = self._ring_for_device()
        # Allocated and written on the ring's stream, so that the copy does not wait for an encode.
        with (
            torch.inference_mode(False),
            nullcontext() if ring is None or ring.stream is None else torch.cuda.stream(ring.stream),
        ):
            return torch.empty(tuple(shape), dtype=dtype, device=self.device)

    @traced("copy")
    def start_into(self, target: Tensor, feature: Tensor | np.ndarray) -> MovedFeature:
        """Start to copy a feature in host memory to a contiguous slice of a tensor from `empty`.

        Parameters
        ----------
        target
            The slice, of the feature's shape. Its dtype is the feature's, or bfloat16 or float16 for float32.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `PinnedRing.copy_to`.
        """
        ring = self._ring_for_device()
        if ring is None:
            return MovedFeature(target.copy_(as_tensor(feature)))
        return MovedFeature(target, ring.copy_to(target, feature, after=ring.stream))

    def has_free_bytes(self, *features: Any) -> bool:
        """Whether `start` would now move each of some features without waiting for slots of the ring.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As `start`, if a feature in host memory has to pass a ring that cannot copy it.
        """
        on_host = [
            feature.detach() if isinstance(feature, Tensor) else feature
            for feature in features
            # `start` refuses other objects.
            if isinstance(feature, np.ndarray)
            or (isinstance(feature, Tensor) and feature.device.type == "cpu")
        ]
        ring = self._ring_for_device() if on_host else None
        if ring is None:
            return True
        num_bytes = 0
        for feature in on_host:
            source = as_strided_view(feature)
            itemsize = self._dtype_for(source.dtype, is_cast=True).itemsize
            num_bytes += -(-math.prod(source.shape) * itemsize // MIN_BYTES) * MIN_BYTES  # aligned slots
        return ring.has_free_bytes(num_bytes)

    def close(self) -> None:
        """Close the ring if the mover made it. Afterwards the mover makes no ring."""
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
    """Return a CPU tensor that shares an array's memory, or a copy if torch cannot share it.

    Raises
    ------
    TypeError
        If torch has no dtype like the array's.
    """
    if isinstance(feature, Tensor):
        return feature
    source = as_strided_view(feature)
    if not feature.flags.writeable or min(source.strides, default=0) < 0:
        feature = np.array(feature, order="C")
    return torch.from_numpy(feature)
