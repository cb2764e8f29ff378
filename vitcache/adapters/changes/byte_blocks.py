"""`Block`: some bytes of one weight, found in its storage without keeping the storage in memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vitcache.adapters.changes.weight_parts import inner_tensors, parts_of

WORD_BYTES = 4
# A block of a small weight takes as long as one of this size: an operation of torch takes some microseconds.
_OVERHEAD_BYTES = 32 << 10
_SMALLEST_CUT = 4 << 10


def max_block_bytes(device: torch.device) -> int:
    """Return the largest number of bytes of a block.

    A launch on a GPU takes as long as a launch for 2 MiB. On the CPU, 256 KiB and the temporary tensor of its
    products stay in the L2 cache.
    """
    return 256 << 10 if device.type == "cpu" else 2 << 20


class Dim(NamedTuple):
    """A dimension of bytes: `size` indices that are `stride` bytes apart."""

    size: int
    stride: int


class Region(NamedTuple):
    """The bytes of a weight: those at `offset` of its storage and at all indices of `dims`."""

    name: str
    storage: torch.UntypedStorage
    offset: int
    dims: list[Dim]

    @property
    def nbytes(self) -> int:
        return math.prod(dim.size for dim in self.dims)

    @property
    def end(self) -> int:
        """The number of bytes that the storage must have."""
        return self.offset + sum((dim.size - 1) * dim.stride for dim in self.dims) + 1


class Block:
    """A part of a region, of bounded size. The reference to its storage is weak: a block keeps no weight.

    The reference is not to the tensor, because torch refuses to swap a tensor that has a weak reference:
    `torch.utils.swap_tensors` converts the weights of tensor subclasses, such as DTensor.

    Attributes
    ----------
    name
        Name of the weight.
    device
        Device of the bytes.
    nbytes
        Number of the bytes.
    """

    __slots__ = ("_dims", "_end", "_is_aligned", "_offset", "_storage", "device", "name", "nbytes")

    def __init__(self, region: Region) -> None:
        storage, dims = region.storage, region.dims
        self.name = region.name
        self.device = storage.device
        self.nbytes = region.nbytes
        self._storage = weakref.ref(storage)
        self._offset = region.offset
        self._dims = dims
        self._end = region.end
        is_dense = len(dims) == 1 and dims[0].stride == 1
        places = storage.data_ptr(), region.offset, self.nbytes
        self._is_aligned = is_dense and not any(place % WORD_BYTES for place in places)

    def words(self) -> Tensor:
        """Return the bytes as int32 words on `device`, ``(ceil(nbytes / 4),)``; the last one is padded.

        The words are a view of the weight if its layout allows that, else a copy on the current stream.

        Raises
        ------
        ReferenceError
            If the memory of the weight was freed, or is smaller than it was.
        """
        storage = self._storage()
        if storage is None or storage.nbytes() < self._end:
            raise ReferenceError(f"the memory of {self.name} was freed")
        if self._is_aligned:
            words = torch.empty(0, dtype=torch.int32, device=self.device)
            return words.set_(storage, self._offset // WORD_BYTES, (self.nbytes // WORD_BYTES,), (1,))
        sizes, strides = zip(*self._dims, strict=True)
        view = torch.empty(0, dtype=torch.uint8, device=self.device)
        view.set_(storage, self._offset, sizes, strides)
        num_words = -(-self.nbytes // WORD_BYTES)
        padded = torch.zeros(num_words * WORD_BYTES, dtype=torch.uint8, device=self.device)
        padded[: self.nbytes].view(sizes).copy_(view)
        return padded.view(torch.int32)


def regions_of(weights: Iterable[tuple[str, Tensor]]) -> list[Region]:
    """Return the regions of weights: each byte that weights share is in one region, that of the first name.

    Weights without memory of their own are left out: those on the device "meta", sparse ones, and those whose
    memory is released until the next run.

    Parameters
    ----------
    weights
        Parameters and buffers with their names, of any dtype, strides and device. Of a tensor subclass, such
        as DTensor, the inner tensors are read.
    """
    found: dict[tuple[object, ...], Region] = {}
    for name, tensor in _plain_tensors(weights):
        region = Region(name, tensor.untyped_storage(), *_bytes_of(tensor))
        if region.storage.nbytes() >= region.end:
            place = tensor.device, region.storage.data_ptr(), region.offset, *region.dims
            found.setdefault(place, region)
    return list(found.values())


def cut_in_parts(regions: list[Region], num_parts: int) -> list[list[Block]]:
    """Return the blocks of regions in at most `num_parts` lists, which take about the same time to read.

    There is at least one list, and a list may be empty.
    """
    total = sum(region.nbytes for region in regions)
    share = max(_SMALLEST_CUT, -(-total // num_parts // 8) * 8)
    blocks = [
        Block(part)
        for region in regions
        for part in _cut(region, min(share, max_block_bytes(region.storage.device)))
    ]
    num_parts = max(1, min(num_parts, len(blocks)))
    parts: list[list[Block]] = [[] for _ in range(num_parts)]
    cost = sum(block.nbytes + _OVERHEAD_BYTES for block in blocks)
    position = 0
    for block in blocks:
        parts[position * num_parts // cost].append(block)
        position += block.nbytes + _OVERHEAD_BYTES
    return parts


def _plain_tensors(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors with memory of their own."""
    for name, weight in weights:
        for part, tensor in parts_of(name, weight):
            has_memory = tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0
            if has_memory and not inner_tensors(tensor):
                yield part, tensor


def _bytes_of(tensor: Tensor) -> tuple[int, list[Dim]]:
    """Return the first byte of a tensor in its storage, and the dimensions of its bytes: as few as possible.

    A dimension of size 1 or stride 0 adds no bytes. A dense tensor has one dimension, also if transposed.
    """
    size = tensor.element_size()
    dims = [Dim(*dim) for dim in zip(tensor.shape, tensor.stride(), strict=True) if dim[0] > 1 and dim[1]]
    merged = [Dim(size, 1)]
    for dim in sorted(dims, key=lambda dim: dim.stride):
        inner, stride = merged[-1], dim.stride * size
        if stride == inner.size * inner.stride:
            merged[-1] = Dim(dim.size * inner.size, inner.stride)
        else:
            merged.append(Dim(dim.size, stride))
    return int(tensor.storage_offset()) * size, merged[::-1]


def _cut(region: Region, max_bytes: int) -> Iterator[Region]:
    """Yield parts of a region, each of at most `max_bytes`."""
    if region.nbytes <= max_bytes:
        yield region
        return
    outer, *inner = region.dims
    step = max(1, max_bytes * outer.size // region.nbytes)
    for first in range(0, outer.size, step):
        size = min(step, outer.size - first)
        dims = inner if size == 1 and inner else [Dim(size, outer.stride), *inner]
        yield from _cut(region._replace(offset=region.offset + first * outer.stride, dims=dims), max_bytes)
