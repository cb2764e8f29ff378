"""A model of a device with several streams that reports unordered accesses to a page.

Every stream has a vector clock. A fence contains a copy of its stream's clock, and a wait merges that copy
into the clock of the waiting stream. The host orders nothing. Access b is ordered after access a if
the clock of b's stream contains the tick of a.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

from caches import make_cache
from torch import Tensor

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.streams import Fence
from vitcache.pages.pool import PagePool
from vitcache.testing import inspect


class Event:
    """A recorded clock. The model notes an Event that is destroyed while the cache is inconsistent."""

    def __init__(self, model: StreamModel, clock: Counter) -> None:
        self.model = model
        self.clock = clock

    def __del__(self) -> None:
        self.model.note_call("destroy an event")


# A test names a stream, and the cache numbers it. Hence 0, the default stream of CUDA, is a stream, too.
STREAMS = {name: number for number, name in enumerate(("main", "copy", "other", "host", "a", "b", "c", "d"))}
NAMES = {number: name for name, number in STREAMS.items()}


class StreamModel:
    """A timeline of named streams that the host does not wait for.

    While a method of the timeline runs or an event is destroyed, the cache must be consistent. Other threads
    and the garbage collector may run then.
    """

    copy_stream = STREAMS["copy"]

    def __init__(self) -> None:
        self.stream = "main"
        self.clocks: dict[str, Counter] = defaultdict(Counter)
        self.races: list[str] = []
        self.inconsistent_calls: list[str] = []
        self.num_calls = 0
        self.num_waits = 0
        self.num_records = 0
        self.num_synchronizations = 0
        self.cache: EmbeddingCache | None = None
        self._writes: dict[object, tuple[str, int]] = {}
        self._reads: dict[object, dict[str, int]] = defaultdict(dict)

    @contextlib.contextmanager
    def on(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def current(self) -> int:
        return STREAMS[self.stream]

    def on_copy_stream(self) -> contextlib.AbstractContextManager[None]:
        return self.on("copy")

    def record(self, stream: int) -> Fence:
        self.note_call("record")
        self.num_records += 1
        return Fence(stream, Event(self, self.clocks[NAMES[stream]].copy()))

    def wait(self, fence: Fence) -> None:
        self.note_call("wait")
        self.num_waits += 1
        self.clocks[self.stream] |= fence.event.clock

    def wait_on_host(self, fence: Fence) -> None:
        self.note_call("finish")
        self.clocks["host"] |= fence.event.clock

    def synchronize(self) -> None:
        self.note_call("synchronize")
        self.num_synchronizations += 1
        everything: Counter = Counter()
        for clock in self.clocks.values():
            everything |= clock
        self.clocks = defaultdict(everything.copy, {stream: everything.copy() for stream in self.clocks})

    def order_after_host(self) -> None:
        """Order the work that the host queues from now on after the work that it has done itself."""
        for stream in STREAMS:
            self.clocks[stream] |= self.clocks["host"]

    def access(self, page: object, *, write: bool) -> None:
        """Read or write a page on the current stream; note a race with each unordered conflicting access."""
        clock = self.clocks[self.stream]
        clock[self.stream] += 1
        before = [self._writes[page]] if page in self._writes else []
        if write:
            before += self._reads[page].items()
        for stream, tick in before:
            if clock[stream] < tick:
                kind = "writes" if write else "reads"
                self.races.append(f"{self.stream} {kind} {page}, which {stream} uses unordered")
        if write:
            self._writes[page] = (self.stream, clock[self.stream])
            self._reads[page].clear()
        else:
            self._reads[page][self.stream] = clock[self.stream]

    def make_cache(self, device_pages: int, host_pages: int = 0, **options: Any) -> EmbeddingCache:
        """Return a CPU cache with pages of one row of two elements, whose timeline is this model."""
        with (
            mock.patch("vitcache.cache.construction.make_timeline", return_value=self),
            mock.patch("vitcache.cache.construction.PagePool", make_pool_type(self)),
        ):
            self.cache = make_cache(device_pages, host_pages, width=2, page_rows=1, **options)
        return self.cache

    def note_call(self, name: str) -> None:
        """Note the name of a call that CUDA would execute, if the cache is inconsistent."""
        self.num_calls += 1
        if self.cache is None or inspect(self.cache).is_closed:
            return
        self.inconsistent_calls += [f"{name}: {violation}" for violation in inspect(self.cache).violations]


def make_pool_type(model: StreamModel) -> type[PagePool]:
    """Return a pool type whose copies are accesses of the model's current stream."""

    class ModelPool(PagePool):
        def write(self, pages: Sequence[int], rows: Tensor, *, non_blocking: bool = False) -> None:
            model.note_call("write")
            # The CPU writes rows of the CPU to host pages, unless they are copied on the copy stream.
            by_host = self.tier == "host" and model.stream != "copy"
            with model.on("host") if by_host else contextlib.nullcontext():
                for page in pages:
                    model.access((self.tier, page), write=True)
            if by_host:
                model.order_after_host()
            super().write(pages, rows, non_blocking=non_blocking)

        def copy_pages(self, pages: Sequence[int], source: PagePool, source_pages: Sequence[int]) -> None:
            model.note_call("copy")
            for page, source_page in zip(pages, source_pages, strict=True):
                model.access((source.tier, source_page), write=False)
                model.access((self.tier, page), write=True)
            super().copy_pages(pages, source, source_pages)

        def move_pages(self, moves: Sequence[tuple[int, int, int]]) -> None:
            model.note_call("move")
            for first, first_source, count in moves:
                for offset in range(count):
                    model.access((self.tier, first_source + offset), write=False)
                    model.access((self.tier, first + offset), write=True)
            super().move_pages(moves)

    return ModelPool
