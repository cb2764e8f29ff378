"""Threads that copy through one ring at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from torch import Tensor

from vitcache import PinnedRing

# Of a tensor, by however many threads it is copied: their number is all that differs.
NUM_PARTS = 8


@contextmanager
def producers(count: int, ring: PinnedRing, dst: Tensor, src: Tensor) -> Iterator[Callable[[], object]]:
    """Threads that wait for calls of the function given here, which copies `src` to `dst`: all begin at once,
    and each orders its share of the parts, then awaits them.
    """
    parts = list(zip(dst.tensor_split(NUM_PARTS), src.tensor_split(NUM_PARTS), strict=True))
    begin = threading.Barrier(count)

    def produce(first: int) -> None:
        begin.wait()
        tickets = [ring.copy_to(*part) for part in parts[first::count]]
        for ticket in tickets:
            ticket.wait()

    with ThreadPoolExecutor(count) as threads:
        yield lambda: list(threads.map(produce, range(count)))  # the list raises what a thread raised
