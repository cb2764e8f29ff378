"""`FieldCopies`: one field of a micro-batch, joined on the device by copies through a pinned ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache.pipeline.feature_mover import FeatureMover, MovedFeature

# If the tensors of a field have fewer bytes than this on average, vLLM joins them in host memory and one copy
# moves them. A thread copies these bytes in less time than the host needs to queue a copy through the ring.
MIN_COPY_BYTES = 64 << 10


class FieldCopies:
    """One argument of the encoder: the data of one field of some items, as vLLM joins it, on the device.

    Large tensors that lie one after another in the joined tensor are copied to their slices of it: no byte is
    copied within pageable memory. vLLM joins all other data in host memory, and its tensors are moved then.

    Parameters
    ----------
    elems
        vLLM's `MultiModalFieldElem` of each item, for one field. Not empty.
    device
        Device of the encoder.
    mover
        Moves tensors to the device. None, or if the field stays on the CPU: vLLM joins and moves the data.
    pin_memory
        Whether vLLM pins the memory that it copies from.

    Notes
    -----
    One thread may use the object. A copy that is in flight keeps its source alive itself.
    """

    def __init__(
        self, elems: Sequence[Any], device: torch.device, mover: FeatureMover | None, pin_memory: bool
    ) -> None:
        self._elems = list(elems)
        self._device = device
        self._mover = mover
        self._pin_memory = pin_memory
        self._value: Any = None
        self._unstarted: deque[tuple[Tensor, Tensor]] = deque()  # target, source
        self._moved: list[MovedFeature] = []

    def start(self, *, is_ahead: bool = False) -> None:
        """Queue the copies that are not queued yet.

        Parameters
        ----------
        is_ahead
            True: only copies for which the host does not wait for slots of the ring, and no large join in
            host memory. A further call queues the rest.

        Raises
        ------
        Exception
            If vLLM cannot join the data, or the ring refuses a copy.
        """
        if self._elems and not self._join(is_ahead):
            return
        mover = self._mover
        while self._unstarted and mover is not None:
            target, source = self._unstarted[0]
            if is_ahead and not mover.has_free_bytes(source):
                return
            self._moved.append(mover.start_into(target, source.detach()))  # the encoder needs no gradient
            self._unstarted.popleft()

    def take(self) -> Any:
        """Let the current stream wait for the copies, and return the joined data. `start` was called before.

        The object keeps no reference to the data. On the CPU the host waits.

        Raises
        ------
        CudaError
            If a copy failed.
        """
        value, self._value = self._value, None
        moved, self._moved = self._moved, []
        for part in moved:
            part.ready()
        return value

    def _join(self, is_ahead: bool) -> bool:
        """Prepare the value and its copies. False: this takes the host's time, and `is_ahead` is true."""
        elems, mover = self._elems, self._mover
        field, data = elems[0].field, [elem.data for elem in elems]
        if mover is None or field.keep_on_cpu:
            if is_ahead:  # vLLM copies on the current stream: a copy ahead of the encode would delay it
                return False
            self._value = field.reduce_data(elems, device=self._device, pin_memory=self._pin_memory)
        elif are_large(data) and (shape := joined_shape(field, data)) is not None:
            joined = mover.empty(shape, data[0].dtype)
            slices = joined.view(-1).split([source.numel() for source in data])
            targets = [part.view(source.shape) for part, source in zip(slices, data, strict=True)]
            self._unstarted.extend(zip(targets, data, strict=True))
            self._value = joined
        elif is_ahead and are_large(data) and field_name(field) == FLAT:
            return False
        else:
            self._value = map_tensors(self._target_of, field.reduce_data(elems))
        self._elems = []
        return True

    def _target_of(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device, or the target of a copy that is not queued yet."""
        if self._mover is None or not can_pass_ring(tensor):
            return tensor.to(self._device, non_blocking=True)
        target = self._mover.empty(tensor.shape, tensor.dtype)
        self._unstarted.append((target, tensor))
        return target


# vLLM's classes by name, so that this module needs no vLLM. vLLM itself joins the data of unknown classes.
BATCHED, FLAT = "MultiModalBatchedField", "MultiModalFlatField"


def field_name(field: Any) -> str:
    """Return the name of the class of a field."""
    return type(field).__name__


def can_pass_ring(value: Any) -> bool:
    """Whether a pinned ring can copy this value: a dense tensor in host memory."""
    if not isinstance(value, Tensor) or value.device.type != "cpu":
        return False
    return value.layout == torch.strided and not value.is_quantized


def are_large(data: Sequence[Any]) -> bool:
    """Whether these are several tensors that can pass a ring, with `MIN_COPY_BYTES` or more on average."""
    if len(data) < 2 or not all(can_pass_ring(value) for value in data):
        return False
    num_bytes: int = sum(value.nbytes for value in data)
    return num_bytes >= MIN_COPY_BYTES * len(data)


def joined_shape(field: Any, tensors: Sequence[Tensor]) -> tuple[int, ...] | None:
    """Return the shape of the tensor in which vLLM lays the tensors of a field one after another.

    Returns None if vLLM joins them in another way: in a list, with padding, or along an inner dimension.
    """
    first = tensors[0]
    if any(tensor.dtype != first.dtype or tensor.dim() != first.dim() for tensor in tensors):
        return None
    if field_name(field) == BATCHED and all(tensor.shape == first.shape for tensor in tensors):
        return (len(tensors), *first.shape)
    is_first_dim = field_name(field) == FLAT and first.dim() > 0 and field.dim in (0, -first.dim())
    if is_first_dim and all(tensor.shape[1:] == first.shape[1:] for tensor in tensors):
        return (sum(len(tensor) for tensor in tensors), *first.shape[1:])
    return None


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return nested dicts, lists and tuples with each tensor replaced by `function` of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [map_tensors(function, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value
