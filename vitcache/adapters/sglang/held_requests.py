"""`HeldRequests`: requests that stay in SGLang's waiting queue until their rows are fetched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from vitcache.adapters.sglang.counts import Counts

PAUSE_S = 0.001  # of a scheduler that has nothing but held requests
AnyRank = Callable[[Sequence[bool]], Sequence[bool]]


class Arrival(Protocol):
    """The fetch of the rows of one request. `FetchedItems` is one."""

    @property
    def done(self) -> bool:
        """Whether the fetch has ended, with the rows or without them."""

    def wait(self, timeout_s: float) -> None:
        """Block until the fetch has ended, at most `timeout_s` seconds."""

    def finish(self) -> None:
        """Let the first step of the request use the keys that the fetch has computed."""


class Hold:
    """A held request, its fetch, and the time at which it is no longer held."""

    __slots__ = ("arrival", "deadline", "has_waited", "request")

    def __init__(self, request: Any, arrival: Arrival | None, deadline: float) -> None:
        self.request = request
        self.arrival = arrival
        self.deadline = deadline
        self.has_waited = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to fetch."""
        return self.arrival is None or self.arrival.done


class HeldRequests:
    """The requests that no batch may take yet. SGLang's scheduler thread uses it.

    A held request is in `Scheduler.waiting_queue`, where SGLang counts it and can abort it. While SGLang
    chooses the requests of a batch, the queue is without it.

    Parameters
    ----------
    counts
        Counts the requests that have waited, and those that were late.
    clock
        Returns seconds.

    Attributes
    ----------
    any_rank
        Returns for each flag whether a rank has set it; None: there is one rank. Ranks make equal batches, so
        they hold the same requests, and each one until all of them have its rows or its time is over.
    """

    def __init__(self, counts: Counts, clock: Callable[[], float] = time.monotonic) -> None:
        self.any_rank: AnyRank | None = None
        self._counts = counts
        self._clock = clock
        self._holds: dict[int, Hold] = {}
        self._chooses = False  # whether SGLang chooses the requests of a batch
        self._queue: list[Any] | None = None  # the whole queue, while that of SGLang is without some requests

    def __len__(self) -> int:
        return len(self._holds)

    def add(self, request: Any, arrival: Arrival | None, timeout_s: float) -> None:
        """Hold a request until its fetch is done, at most `timeout_s` seconds from now."""
        self._holds[id(request)] = Hold(request, arrival, self._clock() + timeout_s)

    @contextmanager
    def choice(self, scheduler: Any) -> Iterator[None]:
        """SGLang chooses the requests of a batch: its queue is without the held requests."""
        self._chooses = True
        try:
            self._hide(scheduler)
            yield
        finally:
            self._chooses = False
            self._show(scheduler)

    @contextmanager
    def entry(self, scheduler: Any) -> Iterator[None]:
        """A request enters the queue, which is whole: SGLang may refuse the request because of its length."""
        self._show(scheduler)
        try:
            yield
        finally:
            if self._chooses:  # as for a request whose grammar is ready
                self._hide(scheduler)

    def pause(self) -> None:
        """Let the threads that fetch run, if a request is held: SGLang's loop has nothing else to do."""
        for hold in self._holds.values():
            if hold.arrival is not None:
                hold.arrival.wait(PAUSE_S)
                return

    def clear(self) -> None:
        """Hold no request any more."""
        self._holds.clear()

    def _hide(self, scheduler: Any) -> None:
        if not self._holds:
            return
        self._end_holds()
        queue = scheduler.waiting_queue
        visible = [request for request in queue if id(request) not in self._holds]
        if len(visible) < len(queue):
            self._queue, scheduler.waiting_queue = queue, visible

    def _show(self, scheduler: Any) -> None:
        queue, self._queue = self._queue, None
        if queue is None:
            return
        left = scheduler.waiting_queue
        known, kept = set(map(id, queue)), set(map(id, left)) | self._holds.keys()
        # The order of their arrival: SGLang sorts the queue again for each batch.
        scheduler.waiting_queue = [
            *(request for request in queue if id(request) in kept),
            *(request for request in left if id(request) not in known),
        ]

    def _end_holds(self) -> None:
        now, holds = self._clock(), list(self._holds.values())
        wait: Sequence[bool] = [not hold.done and now < hold.deadline for hold in holds]
        if self.any_rank is not None:
            wait = self.any_rank(wait)
        for hold, waits in zip(holds, wait, strict=True):
            if waits:
                self._counts.held += not hold.has_waited
                hold.has_waited = True
                continue
            del self._holds[id(hold.request)]
            self._counts.late += not hold.done
            if hold.arrival is not None:
                hold.arrival.finish()
