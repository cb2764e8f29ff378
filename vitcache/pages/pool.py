"""Pages: the memory of one tier, allocated once, and who has which page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitcache._native import CudaRuntime, PagedRows, Stream, copy_batch
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.device.streams import Fence
from vitcache.errors import CudaError
from vitcache.pages.pinned import allocate_pinned
from vitcache.rows import KINDS


class Layout(NamedTuple):
    """How the pages of a tier lie; a released lease still has it."""

    tier: str
    page_rows: int
    row_width: int
    dtype: torch.dtype


class PagePool:
    """The pages of one tier: a tensor of `num_pages * page_rows` rows and a list of the free ones.

    A free page carries the fences of the last work on it; whoever takes it waits for them before writing.

    Parameters
    ----------
    tier
        ``"device"``: on `device`. ``"host"``: on the CPU, page-locked if `device` is a CUDA device.
    num_pages, page_rows, row_width
        Pages, rows of a page, elements of a row.

    Raises
    ------
    MemoryError
        If the memory cannot be page-locked.
    CudaError
        If there is no CUDA runtime to copy to a host tier of a CUDA device.

    Notes
    -----
    The counts and the free list are guarded by the cache's lock. `write`, `copy_pages` and `segments` take no
    lock: they touch only pages that their caller holds, and copy on the current stream.
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
        self.layout = Layout(tier, page_rows, row_width, dtype)
        self.page_bytes = page_rows * row_width * dtype.itemsize
        self._runtime = open_cuda_runtime() if tier == "host" and device.type == "cuda" else None
        if self._runtime is not None and not self._runtime.available:
            searched = "; ".join(self._runtime.searched)
            raise CudaError(f"a host tier of {device} needs the CUDA runtime: {searched}")
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            if tier == "host" and device.type == "cuda":
                self.rows = (
                    allocate_pinned(num_pages * self.page_bytes, device).view(dtype).view(-1, row_width)
                )
            else:
                place = device if tier == "device" else torch.device("cpu")
                self.rows = torch.empty((num_pages * page_rows, row_width), dtype=dtype, device=place)
        self._for_device = device
        self._address = self.rows.data_ptr()
        self._kind = KINDS[dtype]
        self._row_bytes = row_width * dtype.itemsize
        place = self.rows.device
        self._on_cuda = place.type == "cuda"
        # A host tier is no plain source anywhere: through -1 every placement of it is looked at in Python.
        self._device_id = (place.index or 0) if place.type == device.type else -1
        self.leased = 0  # pages that a lease holds
        self.in_flight = 0  # pages that a `put` copies from or to
        self.free_pages = list(range(num_pages - 1, -1, -1))
        self._fences: dict[int, tuple[Fence, ...]] = {}

    @property
    def num_free(self) -> int:
        """Pages that nobody has."""
        return len(self.free_pages)

    @property
    def num_available(self) -> int:
        """Pages that are free or can be made so: neither leased nor being copied."""
        return self.num_pages - self.leased - self.in_flight

    def describe(self, pages: Sequence[int], num_rows: int) -> PagedRows:
        """Return what a placement reads of `num_rows` rows in `pages`."""
        return PagedRows(
            self._address,
            self._row_bytes,
            num_rows,
            self._kind,
            pages,
            self.page_rows,
            self.row_width,
            self._on_cuda,
            self._device_id,
        )

    def pages_for(self, num_rows: int) -> int:
        """Return the pages that so many rows take: at least one, so that the pages bound the entries."""
        return max(1, -(-num_rows // self.page_rows))

    def take(self, count: int) -> tuple[tuple[int, ...], set[Fence]]:
        """Take `count` free pages; return them and the fences to wait for before they are written."""
        first = len(self.free_pages) - count
        pages = tuple(reversed(self.free_pages[first:]))
        del self.free_pages[first:]
        return pages, {fence for page in pages for fence in self._fences.pop(page, ())}

    def give_back(self, pages: Sequence[int], fences: tuple[Fence, ...]) -> None:
        """Free pages whose last readers and writers have passed once `fences` are."""
        self.free_pages.extend(reversed(pages))
        self._fences.update(dict.fromkeys(pages, fences))

    def write(self, pages: Sequence[int], rows: Tensor) -> None:
        """Copy `rows` into `pages`, converted to the pool's dtype."""
        first = 0
        for page, length in _runs(pages, rows.shape[0], self.page_rows):
            self._run(page, length).copy_(rows[first : first + length])
            first += length

    def copy_pages(self, pages: Sequence[int], source: PagePool, source_pages: Sequence[int]) -> None:
        """Copy whole pages from another pool, each run of pages that are adjacent in both in one piece.

        From a GPU all copies are queued in one call, on its current stream, which is not the default one.
        """
        runs = list(_joint_runs(pages, source_pages))
        if self._runtime is not None:
            current = torch.cuda.current_stream(self._for_device)
            stream = Stream(current.cuda_stream, current.device.index)
            self.queue_copies(runs, source, self._runtime, stream)
            return
        for page, source_page, count in runs:
            length = count * self.page_rows
            self._run(page, length).copy_(source._run(source_page, length))

    def queue_copies(
        self, runs: Sequence[tuple[int, int, int]], source: PagePool, runtime: CudaRuntime, stream: Stream
    ) -> None:
        """Queue copies of ``(page, page of source, count)`` on a stream of a CUDA runtime."""
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
        """Return views of the first `num_rows` rows of `pages` in order, adjacent pages joined."""
        return [self._run(page, length) for page, length in _runs(pages, num_rows, self.page_rows) if length]

    def _run(self, page: int, length: int) -> Tensor:
        return self.rows[page * self.page_rows : page * self.page_rows + length]


def _runs(pages: Sequence[int], num_rows: int, page_rows: int) -> Iterator[tuple[int, int]]:
    """Yield ``(first page, rows)`` of each run of adjacent pages."""
    start = 0
    for end in range(1, len(pages) + 1):
        if end == len(pages) or pages[end] != pages[end - 1] + 1:
            yield pages[start], min(end * page_rows, num_rows) - start * page_rows
            start = end


def _joint_runs(pages: Sequence[int], source_pages: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield ``(page, source page, count)`` of each run that is adjacent on both sides."""
    start = 0
    steps = list(zip(pages, source_pages, strict=True))
    for end in range(1, len(steps) + 1):
        count = end - start
        page, source_page = steps[start]
        if end == len(steps) or steps[end] != (page + count, source_page + count):
            yield page, source_page, count
            start = end
