"""Several threads that copy through one ring at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from torch import Tensor

from vitcache import PinnedRing

NUM_PARTS = 8  # the same for every number of threads, so that only that number differs


@contextmanager
def producers(count: int, ring: PinnedRing, dst: Tensor, src: Tensor) -> Iterator[Callable[[], object]]:
    """Start `count` threads; yield a function that copies `src` to `dst` with them.

    In each call all threads begin at the same time. Each thread queues its share of the parts, and then waits
    for their tickets.
    """
    parts = list(zip(dst.tensor_split(NUM_PARTS), src.tensor_split(NUM_PARTS), strict=True))
    begin = threading.Barrier(count)

    def produce(first: int) -> None:
        begin.wait()
        tickets = [ring.copy_to(*part) for part in parts[first::count]]
        for ticket in tickets:
            ticket.wait()

    with ThreadPoolExecutor(count) as threads:
        yield lambda: list(threads.map(produce, range(count)))  # list() raises the exception of a thread
