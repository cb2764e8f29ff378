"""`LazyFeatures`: features without memory, which a stock forward passes on, joins and cuts like a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor

from vitcache.adapters.lazy_rows import LazyRows, Range
from vitcache.adapters.running_call import ThreadState

_ATTRIBUTES = (
    "device dtype grad_fn is_cpu is_cuda is_leaf is_meta is_sparse itemsize layout nbytes ndim requires_grad",
    "shape",
)
_METHODS = (
    "__len__ dim element_size get_device is_complex is_contiguous is_floating_point ndimension nelement",
    "numel size stride",
)
_METADATA = {getattr(Tensor, name).__get__ for name in " ".join(_ATTRIBUTES).split()}
_METADATA |= {getattr(Tensor, name) for name in " ".join(_METHODS).split()}

_KEYWORDS = {"device", "dim", "dtype", "non_blocking"}
"""The keyword arguments that `LAZY_OPERATIONS` take; a call with `out`, for example, needs memory."""

LAZY_OPERATIONS: dict[Any, Any] = {}
"""The operations that take lazy features as they are, by function of torch; `lazy_operations` fills it."""


class LazyFeatures(Tensor):
    """Features of some rows of a call: a tensor ``(n, hidden)`` or ``(items, n, hidden)`` without memory.

    `torch.cat`, slices, views of whole rows and the other operations of a stock forward before its merge
    return `LazyFeatures` again. `Tensor.masked_scatter`, the merge, writes the rows in place if the calling
    thread is in a forward that allows it. Every other operation gets a tensor with memory: the first one
    copies the rows. As usual, a view shares its memory with its base, and a copy shares none.

    Parameters
    ----------
    rows
        The rows of all items of the call.
    plane
        0: the features. `l`: deepstack level `l`.
    ranges
        The rows of this tensor, in order. A row may occur several times.
    thread
        The running calls of the stock forward.
    base, start
        If the tensor is a view: its base, and the view's first row in it.

    Attributes
    ----------
    lengths, element_type
        The shape, as a tuple, and the dtype: each takes no call of `__torch_function__`.
    memory
        The copied rows ``(n, hidden)`` of the base, and an event behind the copy on a GPU. All views of a
        base have the same list. It is empty until an operation reads the rows; then it may be written.
    plain
        The view of the memory that every operation on this tensor gets. None: none has got it.
    """

    rows: LazyRows
    plane: int
    ranges: tuple[Range, ...]
    lengths: tuple[int, ...]
    element_type: torch.dtype
    thread: ThreadState
    base: LazyFeatures | None
    start: int
    memory: list[Any]
    plain: Tensor | None

    @staticmethod
    def __new__(
        cls,
        rows: LazyRows,
        plane: int,
        ranges: tuple[Range, ...],
        lengths: tuple[int, ...],
        thread: ThreadState,
        dtype: torch.dtype | None = None,
        base: LazyFeatures | None = None,
        start: int = 0,
    ) -> Self:
        """Make a tensor without memory. `dtype` is that of the rows if it is None."""
        dtype = dtype or rows.dtype
        make: Any = Tensor._make_wrapper_subclass
        tensor: Self = make(cls, lengths, dtype=dtype, device=rows.device)
        tensor.rows, tensor.plane, tensor.ranges = rows, plane, ranges
        tensor.lengths, tensor.element_type = lengths, dtype
        tensor.thread, tensor.base, tensor.start = thread, base, start
        tensor.memory = [] if base is None else base.memory
        tensor.plain = None
        # Code that asks for an address behind torch's back gets an error, not the address 0.
        torch._C._set_throw_on_mutable_data_ptr(tensor)
        return tensor

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return _outside_of_graphs(function, types, args, kwargs)
        kwargs = kwargs or {}
        # Afterwards, `requires_grad_` or `unsqueeze_` may have changed the view.
        if function in _METADATA and args[0].plain is None:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        if function in LAZY_OPERATIONS and kwargs.keys() <= _KEYWORDS:
            result = LAZY_OPERATIONS[function](function, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return function(*_with_memory(args, function), **_with_memory(kwargs, function))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Code in C++ calls operations without `__torch_function__`.
        return function(*_with_memory(args, function), **_with_memory(kwargs or {}, function))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy the rows: a pickle has no leases."""
        return self.with_memory().__reduce_ex__(protocol)

    def with_memory(self) -> Tensor:
        """Return `plain`. The current stream waits until the rows are written.

        Afterwards this tensor and its base keep no lease.
        """
        device, memory = self.rows.device, self.memory
        with self.rows.lock:
            if not memory:
                base = self if self.base is None else self.base
                copied = [base._copy()]
                if device.type == "cuda":
                    copied.append(torch.cuda.current_stream(device).record_event())
                # A signal handler or a finalizer of this thread may have read the features: then `copied`,
                # which may have no rows, is not used.
                memory += copied if not memory else ()
                base.rows = self.rows = self.rows.without_items()
            elif device.type == "cuda":
                stream = torch.cuda.current_stream(device)
                stream.wait_event(memory[1])
                memory[0].record_stream(stream)
            if self.plain is None:
                rows = slice(self.start, self.start + prod(self.lengths[:-1]))
                # A view that is made in inference mode could not be written outside of it.
                with torch.inference_mode(False), torch.no_grad():
                    self.plain = memory[0][rows].view(self.lengths)
            return self.plain

    def _copy(self) -> Tensor:
        call = self.thread.call
        dtype = self.element_type
        level = None if call is None else call.take_level(self.rows, self.plane, self.ranges, dtype)
        if level is not None:
            return level
        # A tensor of inference mode could not be used for training later; features may be read in any mode.
        with torch.inference_mode(False), torch.no_grad():
            return self.rows.copy_plane(self.plane, self.ranges).to(dtype)

    def cut(self, start: int, stop: int) -> list[Range]:
        """Return the ranges of the rows ``[start, stop)`` of this tensor."""
        cut, begin = [], 0
        for first, last in self.ranges:
            low, high = max(start - begin, 0), min(stop - begin, last - first)
            if low < high:
                cut.append((first + low, first + high))
            begin += last - first
        return cut

    def view_of(self, start: int, lengths: Sequence[int]) -> LazyFeatures:
        """Return a view of this shape that begins at row `start`."""
        ranges = tuple(self.cut(start, start + prod(lengths[:-1])))
        base, start = self if self.base is None else self.base, self.start + start
        dtype = self.element_type
        return LazyFeatures(self.rows, self.plane, ranges, tuple(lengths), self.thread, dtype, base, start)

    def copy_of(
        self, ranges: tuple[Range, ...], lengths: Sequence[int], dtype: torch.dtype | None = None
    ) -> Any:
        """Return a copy of other rows; NotImplemented if another thread has read this tensor just now."""
        rows = self.rows
        if self.memory:  # asked after `rows` was taken: then `rows` has its items, or the memory is there
            return NotImplemented
        return LazyFeatures(rows, self.plane, ranges, tuple(lengths), self.thread, dtype or self.element_type)


@torch.compiler.disable
def _outside_of_graphs(function: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    return LazyFeatures.__torch_function__(function, types, args, kwargs)


def planes_of(rows: LazyRows, thread: ThreadState) -> list[LazyFeatures]:
    """Return the features ``(n, hidden)`` of all items, then those of each deepstack level."""
    planes, shape = [], (rows.whole[0][1], rows.hidden)
    for plane in range(1 + rows.levels):
        planes.append(LazyFeatures(rows, plane, rows.whole, shape, thread))
    return planes


def _with_memory(value: Any, function: Any) -> Any:
    """Return `value` with tensors that have memory, also in lists, tuples and dicts."""
    if isinstance(value, LazyFeatures):
        if not value.memory and (call := value.thread.call) is not None:
            call.note_read(value, function)
        return value.with_memory()
    if isinstance(value, list | tuple):
        parts = [_with_memory(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {name: _with_memory(part, function) for name, part in value.items()}
    return value
