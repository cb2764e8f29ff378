"""The memory of one tier in pages, allocated once, and the copies into it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vitcache._native import CudaRuntime, Stream, Tier, copy_batch, describe_available_host_bytes
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.errors import CudaError
from vitcache.pages.pinned import allocate_pinned
from vitcache.rows import KINDS, check_extent

# Handles of the legacy default stream. cudaStreamPerThread is refused earlier.
DEFAULT_STREAMS = (0, 1)

# The memory of a host tier begins at a multiple of this many bytes, so that files can be read into it with
# O_DIRECT. Page-locked memory does, too (csrc/runtime/pinned_region.cpp).
HOST_ALIGNMENT = 4096


class PagePool:
    """The memory of one tier: a tensor of `num_pages * page_rows` rows.

    The native `Tier` (csrc/cache/tier.h) lists the free pages, and the fences to wait for
    before a page is written. `make_tier` makes it.

    Parameters
    ----------
    tier
        ``"device"``: memory of `device`. ``"host"``: host memory, page-locked if `device` is a CUDA device.
    num_pages, page_rows, row_width
        Number of pages, rows of a page, elements of a row.

    Raises
    ------
    MemoryError
        If the memory cannot be allocated or page-locked. The message names `device_bytes` or `host_bytes`,
        the number of bytes, and the number that is available.
    CudaError
        If `tier` is ``"host"``, `device` is a CUDA device, and no CUDA runtime is found.

    Notes
    -----
    Any thread may call any method, for pages that it owns or leases. Copies run on the current stream.
    """

    def __init__(
        self,
        tier: str,
        num_pages: int,
        page_rows: int,
        row_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.tier = tier
        self.num_pages = num_pages
        self.page_rows = page_rows
        self.row_width = row_width
        self.dtype = dtype
        self.page_bytes = page_rows * row_width * dtype.itemsize
        self._runtime = open_cuda_runtime() if tier == "host" and device.type == "cuda" else None
        if self._runtime is not None and not self._runtime.available:
            searched = "; ".join(self._runtime.searched)
            raise CudaError(f"a host tier of {device} needs the CUDA runtime: {searched}")
        # A tensor that is made in inference mode cannot be written outside of inference mode.
        with torch.inference_mode(False):
            if self._runtime is not None:
                memory = allocate_pinned(num_pages * self.page_bytes, device, self._runtime)
            else:
                place = device if tier == "device" else torch.device("cpu")
                alignment = 1 if tier == "device" else HOST_ALIGNMENT
                memory = _allocate(f"{tier}_bytes", num_pages * self.page_bytes, place, alignment)
            self.rows = memory.view(dtype).view(-1, row_width)
        self._for_device = device
        self._address = self.rows.data_ptr()
        self._kind = KINDS[dtype]
        self._row_bytes = row_width * dtype.itemsize
        place = self.rows.device
        self._on_cuda = place.type == "cuda"
        # -1 matches no device, so native code leaves each placement from a GPU's host tier to Python.
        self._device_id = (place.index or 0) if place.type == device.type else -1
        self._narrow: dict[int, PagePool] = {}  # by row width

    def at(self, row_width: int) -> PagePool:
        """Return the pool of the same pages with rows of another width, which must divide `row_width`."""
        if row_width == self.row_width:
            return self
        narrow = self._narrow.get(row_width)
        if narrow is None:
            narrow = copy.copy(self)
            narrow._narrow = {}
            narrow.page_rows = self.page_rows * (self.row_width // row_width)
            narrow.row_width = row_width
            with torch.inference_mode(False):
                narrow.rows = self.rows.view(-1, row_width)
            narrow = self._narrow.setdefault(row_width, narrow)
        return narrow

    def make_tier(self) -> Tier:
        """Return a native tier of these pages, all of them free. The tier keeps this pool alive."""
        return Tier(
            self.tier,
            self.num_pages,
            self.page_rows,
            self.row_width,
            self._row_bytes,
            self._address,
            self._kind,
            self._on_cuda,
            self._device_id,
            self,
        )

    def pages_for(self, num_rows: int) -> int:
        """Return how many pages `num_rows` rows need: at least one, which bounds the number of entries."""
        return max(1, -(-num_rows // self.page_rows))

    def write(self, pages: Sequence[int], rows: Tensor, *, non_blocking: bool = False) -> None:
        """Copy `rows` into `pages` on the current stream, rounded to the pool's dtype.

        Raises
        ------
        ValueError, TypeError
            As `vitcache.rows.check_extent`: the storage may have been resized since the rows were checked.
        """
        check_extent("rows", rows)
        first = 0
        for page, length in _runs(pages, rows.shape[0], self.page_rows):
            self._run(page, length).copy_(rows[first : first + length], non_blocking=non_blocking)
            first += length

    def copy_pages(self, pages: Sequence[int], source: PagePool, source_pages: Sequence[int]) -> None:
        """Copy whole pages from another pool. One copy moves a run of pages that are adjacent in both pools.

        Between a GPU and its host tier, one call queues all copies on the GPU's current stream. Only on a
        default stream, where a batch of copies is not allowed, there is one call for each copy. The host does
        not wait.
        """
        runs = list(_joint_runs(pages, source_pages))
        runtime = self._runtime or source._runtime
        if runtime is not None:
            current = torch.cuda.current_stream(self._for_device)
            if current.cuda_stream not in DEFAULT_STREAMS:
                self.queue_copies(runs, source, runtime, Stream(current.cuda_stream, current.device.index))
                return
        for page, source_page, count in runs:
            length = count * self.page_rows
            self._run(page, length).copy_(source._run(source_page, length), non_blocking=True)

    def move_pages(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """Move runs of pages to lower pages on the current stream, which the host does not wait for.

        Parameters
        ----------
        moves
            ``(page, source page, number of pages)`` of each run, in ascending order. A run that overlaps the
            pages that it moves to is moved in parts that do not.
        """
        for page, source_page, count in moves:
            shift = source_page - page
            for first in range(0, count, shift):
                length = min(shift, count - first) * self.page_rows
                self._run(page + first, length).copy_(self._run(source_page + first, length))

    def queue_copies(
        self, runs: Sequence[tuple[int, int, int]], source: PagePool, runtime: CudaRuntime, stream: Stream
    ) -> None:
        """Queue copies on a stream of a CUDA runtime. A run is ``(page, source page, number of pages)``."""
        copy_batch(
            runtime,
            [
                (
                    self._address + page * self.page_bytes,
                    source._address + source_page * self.page_bytes,
                    count * self.page_bytes,
                )
                for page, source_page, count in runs
            ],
            stream,
        )

    def segments(self, pages: Sequence[int], num_rows: int) -> list[Tensor]:
        """Return views of the first `num_rows` rows of `pages` in order, one per run of adjacent pages."""
        return [self._run(page, length) for page, length in _runs(pages, num_rows, self.page_rows) if length]

    def _run(self, page: int, length: int) -> Tensor:
        # `narrow` takes half the time of an index.
        return self.rows.narrow(0, page * self.page_rows, length)


def _allocate(argument: str, num_bytes: int, device: torch.device, alignment: int) -> Tensor:
    """Return a uint8 tensor whose address is a multiple of `alignment`.

    Raises MemoryError, which names `argument`, if it cannot be allocated.
    """
    try:
        if num_bytes + alignment - 1 <= sys.maxsize:
            memory = torch.empty(num_bytes + alignment - 1, dtype=torch.uint8, device=device)
            return memory.narrow(0, -memory.data_ptr() % alignment, num_bytes)
    except RuntimeError as error:
        # On the CPU torch raises a plain RuntimeError, as a signal handler may; on CUDA a class of its own.
        is_of_host = device.type != "cuda" and "alloc" in str(error)
        if not is_of_host and not isinstance(error, torch.OutOfMemoryError):
            raise
    if device.type == "cuda":
        available = f"{torch.cuda.mem_get_info(device)[0]} bytes of it are free"
    else:
        available = describe_available_host_bytes()
    raise MemoryError(f"{argument}: cannot allocate {num_bytes} bytes of memory of {device}, {available}")


def _runs(pages: Sequence[int], num_rows: int, page_rows: int) -> Iterator[tuple[int, int]]:
    """Yield ``(first page, number of rows)`` of each run of adjacent pages."""
    start = 0
    for end in range(1, len(pages) + 1):
        if end == len(pages) or pages[end] != pages[end - 1] + 1:
            yield pages[start], min(end * page_rows, num_rows) - start * page_rows
            start = end


def _joint_runs(pages: Sequence[int], source_pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield ``(page, source page, number of pages)`` of each run of pages that are adjacent in both pools."""
    start = 0
    steps = list(zip(pages, source_pages, strict=True))
    for end in range(1, len(steps) + 1):
        count = end - start
        page, source_page = steps[start]
        if end == len(steps) or steps[end] != (page + count, source_page + count):
            yield page, source_page, count
            start = end
