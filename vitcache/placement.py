"""From what a caller passes to one checked native placement, and from there to the reference or to a
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache import _native, reference
from vitcache.dtypes import DTYPES, KINDS
from vitcache.lease import Lease, use_all
from vitcache.spans import Span

ANY_NUM_TOKENS = 1 << 62

_reader = _native.ItemReader(Tensor, Lease)


class Destination:
    """Checked destination of one call: `inputs_embeds` as rows ``(T, H)`` and `deepstack` as ``(L, T, H)``
    or None.
    """

    __slots__ = ("deepstack", "hidden", "levels", "num_tokens", "rows")

    @classmethod
    def unbound(cls, width: int, device: torch.device, num_tokens: int | None) -> Destination:
        """A stand-in for a destination of which only rows' width and device are known, and perhaps its
        tokens.
        """
        self = cls("rows", torch.empty(0, width, device=device), None)
        self.num_tokens = ANY_NUM_TOKENS if num_tokens is None else num_tokens
        return self

    def __init__(self, name: str, inputs_embeds: Tensor, deepstack: Tensor | None) -> None:
        if not isinstance(inputs_embeds, Tensor):
            raise TypeError(f"{name} must be a tensor, it is {type(inputs_embeds).__name__}")
        _check_dtype(name, inputs_embeds)
        if inputs_embeds.dim() not in (2, 3):
            raise ValueError(f"{name} has {inputs_embeds.dim()} dimensions, it must be (T, H) or (B, T, H)")
        self.rows = _as_rows(name, inputs_embeds, 2)
        self.num_tokens, self.hidden = self.rows.shape
        self.deepstack, self.levels = deepstack, 0
        if deepstack is None:
            return
        if not isinstance(deepstack, Tensor):
            raise TypeError(f"deepstack must be a tensor, it is {type(deepstack).__name__}")
        if deepstack.dtype != inputs_embeds.dtype:
            raise TypeError(f"deepstack is {deepstack.dtype}, {name} is {inputs_embeds.dtype}")
        if deepstack.device != inputs_embeds.device:
            raise ValueError(f"deepstack is on {deepstack.device}, {name} is on {inputs_embeds.device}")
        if tuple(deepstack.shape[1:]) not in (tuple(inputs_embeds.shape), (self.num_tokens, self.hidden)):
            raise ValueError(
                f"deepstack has shape {tuple(deepstack.shape)}, "
                f"it must be (L, {self.num_tokens}, {self.hidden})"
            )
        self.deepstack = _as_rows("deepstack", deepstack, 3)
        self.levels = len(deepstack)
        begin, end = _extent(self.rows)
        first, last = _extent(self.deepstack)
        if first < end and begin < last:
            raise ValueError(f"deepstack shares memory with {name}")

    def planes(self) -> list[Tensor]:
        """What is written, as ``(T, H)`` each: inputs_embeds, then the deepstack levels."""
        return [self.rows] if self.deepstack is None else [self.rows, *self.deepstack]

    def check_apart_from(self, name: str, other: Tensor) -> None:
        """Raise ValueError if another tensor lies where this one writes."""
        first, last = _extent(other)
        for plane in self.planes():
            begin, end = _extent(plane)
            if first < end and begin < last:
                raise ValueError(f"{name} shares memory with the destination")

    @property
    def width(self) -> int:
        """Elements of a row of embeddings that fills this destination."""
        return self.hidden * (1 + self.levels)


class Placement:
    """The rows of one call: what to read, where to write it, checked against a destination.

    `items` are tensors ``(n, W)`` or leases. The native table of runs and addresses is valid as long as they
    live.
    """

    __slots__ = ("items", "native")

    def __init__(self, destination: Destination, embeddings: Any, spans: Any) -> None:
        self.native = _native.Placement()
        if isinstance(embeddings, Tensor):
            self.items = self._add_items(destination, [embeddings])
            self.native.add_runs(span_array(spans, 3))
        else:
            check_lists(embeddings, spans)
            self.items = self._add_items(destination, embeddings)
            self.native.add_spans(spans, Span)
        self.check(destination)
        self.use_leases()

    @classmethod
    def from_runs(cls, destination: Destination, embeddings: Sequence[Tensor], runs: Tensor) -> Placement:
        """The same from tensors and an int64 table ``(n, 4)`` of item, start, length and source_start."""
        self = object.__new__(cls)
        self.native = _native.Placement()
        self.items = self._add_items(destination, embeddings)
        self.native.add_runs(span_array(runs, 4))
        self.check(destination)
        return self

    def use_leases(self) -> None:
        """Order the current stream behind the writing of leased rows, and their reuse behind it."""
        use_all(item for item in self.items if isinstance(item, Lease))

    def segments(self) -> list[list[Tensor]]:
        """Per item the tensors that hold its rows in order, for the reference."""
        return [[item] if isinstance(item, Tensor) else item.segments() for item in self.items]

    def runs(self) -> list[reference.Run]:
        """``(item, start, length, source_start)`` of every run."""
        return self.native.runs()

    def tensors_and_runs(self) -> tuple[list[Tensor], Tensor]:
        """What the operators take: a tensor per item (of a lease, a copy) and the runs ``(n, 4)``."""
        tensors = [item if isinstance(item, Tensor) else item.to_tensor() for item in self.items]
        return tensors, torch.tensor(self.native.runs(), dtype=torch.int64).reshape(-1, 4)

    def dtypes(self) -> list[torch.dtype]:
        """The dtypes of the rows that are placed."""
        return [DTYPES[kind] for kind in self.native.kinds()]

    def check(self, destination: Destination) -> None:
        """Raise if a run does not fit, two overlap, or an item lies in the destination."""
        self.native.check(destination.num_tokens)
        for plane in destination.planes():
            begin, end = _extent(plane)
            stride = plane.stride(0) * plane.element_size()
            row_bytes = destination.hidden * plane.element_size()
            self.native.check_apart(begin, end, stride, row_bytes, destination.width)

    def _add_items(self, destination: Destination, embeddings: Sequence[Any]) -> list[Tensor | Lease]:
        """Plain tensors on the destination's device go in natively, all else one by one."""
        items = list(embeddings)
        device = destination.rows.device
        added = 0
        while True:
            added = _reader.add(
                self.native, items, added, destination.width, device.type == "cuda", device.index or 0
            )
            if added == len(items):
                return items
            items[added] = self._add_item(destination, added, items[added])
            added += 1

    def _add_item(self, destination: Destination, item: int, rows: Any) -> Tensor | Lease:
        if isinstance(rows, Lease):
            if rows.row_width != destination.width:
                raise ValueError(_width_message(item, rows.row_width, destination))
            if rows.device != destination.rows.device:
                where = destination.rows.device
                raise ValueError(
                    f"item {item} is a lease of a cache on {rows.device}, the destination is on {where}"
                )
            self.native.add_paged_rows(rows.paged_rows, rows.pool.device != destination.rows.device)
            return rows
        if not isinstance(rows, Tensor):
            raise TypeError(f"item {item} must be a tensor or a Lease, it is {type(rows).__name__}")
        _check_dtype(f"item {item}", rows)
        if rows.dim() != 2:
            raise ValueError(
                f"item {item} has shape {tuple(rows.shape)}, it must be (rows, {destination.width})"
            )
        if rows.shape[1] != destination.width:
            raise ValueError(_width_message(item, rows.shape[1], destination))
        _check_device(item, rows, destination)
        packed: Tensor = rows
        if rows.stride(1) != 1:
            packed = rows.contiguous()
            if packed.device != destination.rows.device:
                packed = packed.pin_memory()
        self.native.add_source(
            packed.data_ptr(),
            packed.stride(0) * packed.element_size(),
            packed.shape[0],
            KINDS[packed.dtype],
            packed.device != destination.rows.device,
        )
        return packed


def check_lists(embeddings: Any, spans: Any) -> None:
    """Both are lists (or tuples) of one length, one entry per item."""
    for name, value in (("embeddings", embeddings), ("spans", spans)):
        if not isinstance(value, (list, tuple)) or isinstance(value, Span):  # traced: torch 2.9 knows no `|`
            raise TypeError(
                f"{name} must be a list with one entry per item, it is {type(value).__name__}; "
                "one packed tensor goes with spans as an int64 array (n, 3)"
            )
    if len(embeddings) != len(spans):
        raise ValueError(f"there are {len(embeddings)} embeddings and {len(spans)} entries of spans")


def list_runs(spans: Sequence[Any], rows: Sequence[int]) -> list[reference.Run]:
    """The runs of a list of spans, as `Placement` makes them natively: what a compiled call traces
    instead.
    """
    runs: list[reference.Run] = []
    for item, where in enumerate(spans):
        if isinstance(where, Span):
            runs.append((item, *where))
        elif isinstance(where, (list, tuple)):
            for span in where:
                if not isinstance(span, Span):
                    raise TypeError(f"item {item}: spans must be Span, one is {type(span).__name__}")
                runs.append((item, *span))
        else:
            try:
                start = index(where)
            except TypeError:
                kind = type(where).__name__
                raise TypeError(
                    f"item {item}: spans must be an int, a Span or a list of Span, not {kind}"
                ) from None
            runs.append((item, start, rows[item], 0))
    return runs


def span_array(spans: Any, columns: int) -> np.ndarray:
    """`spans` as a C-contiguous int64 array ``(n, columns)`` in host memory."""
    if isinstance(spans, Tensor):
        if spans.device.type != "cpu":
            raise ValueError(f"spans are on {spans.device}, they must be in host memory")
        spans = spans.numpy(force=True)
    if not isinstance(spans, np.ndarray):
        raise TypeError(
            f"spans of one packed tensor must be an int64 array (n, {columns}), not {type(spans).__name__}"
        )
    if spans.dtype != np.int64:
        raise TypeError(f"spans must be int64, they are {spans.dtype}")
    if spans.ndim != 2 or spans.shape[1] != columns:
        raise ValueError(f"spans have shape {spans.shape}, it must be (n, {columns})")
    return np.ascontiguousarray(spans)


def _check_dtype(name: str, tensor: Tensor) -> torch.dtype:
    if tensor.dtype not in KINDS:
        raise TypeError(f"{name} is {tensor.dtype}, it must be float32, float16 or bfloat16")
    return tensor.dtype


def _check_device(item: int, rows: Tensor, destination: Destination) -> None:
    device = destination.rows.device
    if rows.device == device or (device.type == "cuda" and rows.device.type == "cpu" and rows.is_pinned()):
        return
    pinned = " and not pinned" if device.type == "cuda" and rows.device.type == "cpu" else ""
    raise ValueError(f"item {item} is on {rows.device}{pinned}, the destination is on {device}")


def _width_message(item: int, width: int, destination: Destination) -> str:
    levels = f" (hidden {destination.hidden} x (1 + {destination.levels} deepstack levels))"
    return f"item {item} has rows of width {width}, the destination takes {destination.width}" + (
        levels if destination.levels else ""
    )


def _as_rows(name: str, tensor: Tensor, dimensions: int) -> Tensor:
    """A view of `tensor` with `dimensions` dimensions, all tokens in the one before the last."""
    if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} has stride {tensor.stride(-1)} between elements of a row, it must be 1")
    try:
        if tensor.dim() > dimensions:
            *leading, tokens_of_a_batch, hidden = tensor.shape
            levels = leading[: dimensions - 2]
            num_tokens = tokens_of_a_batch * leading[-1]
            tensor = tensor.view(*levels, num_tokens, hidden)
        if tensor.shape[-2] > 1 and tensor.stride(-2) < tensor.shape[-1]:
            raise ValueError(
                f"{name} has stride {tensor.stride(-2)} between rows of {tensor.shape[-1]} elements"
            )
        return tensor
    except RuntimeError:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} and strides {tensor.stride()} is not one block of rows"
        ) from None


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Address of the first element, and the one behind the last."""
    if tensor.numel() == 0:
        return 0, 0
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (reach + 1) * tensor.element_size()
