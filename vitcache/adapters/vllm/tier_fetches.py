"""`TierFetches`: the scheduler's fetches from lower tiers, and the requests that wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from vitcache.adapters.vllm.counts import Counts
from vitcache.adapters.vllm.orders import ItemKey


class Item(NamedTuple):
    """One item that the workers lack: its key, its rows, and the pages that they occupy."""

    key: ItemKey
    num_rows: int
    row_width: int
    num_pages: int


class RunningFetch(Protocol):
    """One fetch of one item."""

    @property
    def done(self) -> bool:
        """Whether the fetch has ended, and uses no memory beside the pages of rows that it found."""

    def found(self) -> bool:
        """Whether the host tier has the rows. Only after `done`."""

    def cancel(self) -> None:
        """Note that the rows are not needed. Does not wait; `done` follows."""


class Fetcher(Protocol):
    """Fetches rows from lower tiers to the worker's host tier. The worker is in the scheduler's process."""

    def begin(self, item: Item) -> RunningFetch:
        """Begin to fetch an item. Does not wait."""

    def num_lost_pages(self) -> int:
        """Host pages that a fetch may still write, although it has ended."""

    def counts(self) -> dict[str, float]:
        """Return the counters of the tiers since the last call."""

    def reset(self) -> None:
        """Drop all rows, and the name under which the tiers have them."""


class Flight:
    """A fetch that has not ended, and the requests that wait for it. Without requests, it is cancelled."""

    __slots__ = ("fetch", "item", "requests")

    def __init__(self, item: Item, fetch: RunningFetch, request_id: str) -> None:
        self.item, self.fetch = item, fetch
        self.requests = {request_id}

    @property
    def is_missing(self) -> bool:
        """Whether the fetch has ended without rows, for example because the tiers are off for a while."""
        return self.fetch.done and not self.fetch.found()

    def leave(self, request_id: str) -> None:
        """Note that a request waits no more."""
        if request_id in self.requests:
            self.requests.remove(request_id)
            if not self.requests:
                self.fetch.cancel()


class Wait:
    """A request whose items are being fetched."""

    __slots__ = ("asked", "began", "has_waited")

    def __init__(self, began: float) -> None:
        self.began = began
        self.asked: set[ItemKey] = set()  # each of its items is fetched once
        self.has_waited = False


class TierFetches:
    """Fetches the items of requests that wait in the queue. Each request waits once, for a bounded time.

    Fetched rows need host pages before the inventory can count them in the host tier. The workers have
    `num_pages` more host pages than the host tier for this. A fetch begins only if enough of them are free,
    so it never evicts an entry of the host tier.

    Parameters
    ----------
    fetcher
        Begins fetches.
    num_pages
        Host pages for rows that are being fetched, and for entries that are dropped while they are written to
        a tier.
    timeout_s
        Most seconds that a request waits.
    counts
        Counters of the inventory.
    num_tiers
        Number of tiers.
    clock
        Returns seconds.

    Notes
    -----
    Only the scheduler's thread may call. No call waits.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        num_pages: int,
        timeout_s: float,
        counts: Counts,
        *,
        num_tiers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetcher = fetcher
        self._num_pages = num_pages
        self._num_tiers = num_tiers
        # A tier's thread reads one entry at a time, whose host pages are not free even if it is dropped.
        self._num_read = 0  # host pages that each of these threads may read
        self._timeout_s = timeout_s
        self._counts = counts
        self._clock = clock
        self._flights: dict[ItemKey, Flight] = {}
        self._cancelled: list[Flight] = []  # of an earlier epoch
        self._waits: dict[str, Wait] = {}
        self._settled: set[str] = set()  # requests that wait no more
        self._num_used = 0  # pages of flights, and those of rows that the host tier does not contain yet
        # Of these, pages of rows that the host tier contains when the orders are executed.
        self._num_leaving = 0
        self._is_suspended = False

    def is_settled(self, request_id: str) -> bool:
        """Whether a request waits for no fetch any more."""
        return request_id in self._settled

    def admit(self, request_id: str, lacking: Iterable[Item]) -> bool:
        """Fetch the items that the workers lack. Return False if the request must wait for a fetch."""
        if self._is_suspended:
            return True  # and the request asks again, if it is not scheduled now
        now = self._clock()
        wait = self._waits.get(request_id)
        if wait is not None and now - wait.began >= self._timeout_s:
            self._settle(request_id, now)
            return True
        is_waiting = has_no_room = False
        for item in lacking:
            if wait is None:
                wait = self._waits[request_id] = Wait(now)
            most = self._num_pages // (1 + self._num_tiers)
            self._num_read = max(self._num_read, min(item.num_pages, most))
            flight = self._flights.get(item.key)
            if flight is None and item.key not in wait.asked:
                if item.num_pages > self._num_free():
                    has_no_room = True
                    continue
                flight = self._begin(item, request_id)
            wait.asked.add(item.key)
            if flight is not None and flight.requests and not flight.is_missing:
                flight.requests.add(request_id)
                is_waiting = True
        # Pages are freed when a fetch ends: without one in flight, waiting frees none.
        if wait is not None and (is_waiting or (has_no_room and self._flights)):
            wait.has_waited = True
            return False
        self._settle(request_id, now)
        return True

    def take_ended(self) -> Iterator[tuple[Item, bool]]:
        """Yield the items whose fetches have ended, and whether the host tier has their rows.

        If it has, the caller counts the rows in the host tier, or orders to drop them, and calls `free`.
        """
        for flight in [each for each in self._flights.values() if each.fetch.done]:
            del self._flights[flight.item.key]
            is_found = flight.fetch.found()
            if not is_found:
                self.free(flight.item)
            yield flight.item, is_found
        for flight in [each for each in self._cancelled if each.fetch.done]:
            self._cancelled.remove(flight)
            self.free(flight.item)

    def free(self, item: Item, *, is_ordered: bool = False) -> None:
        """Note that the rows of an item occupy no pages beside the host tier any more.

        Parameters
        ----------
        item
            The item of a fetch that has ended.
        is_ordered
            Whether this is so only when the workers have executed the orders of the present pass.
        """
        if is_ordered:
            self._num_leaving += item.num_pages
        else:
            self._num_used -= item.num_pages

    def close_step(self) -> None:
        """Note that the workers execute the orders of this pass before the next one."""
        self._num_used -= self._num_leaving
        self._num_leaving = 0
        self._is_suspended = False

    def finish(self, request_id: str) -> None:
        """Forget a finished request."""
        if request_id in self._waits:
            self._settle(request_id, self._clock())
        self._settled.discard(request_id)

    def reset(self) -> None:
        """Drop all rows, and fetch none before the workers have executed the orders of the reset."""
        for flight in self._flights.values():
            flight.fetch.cancel()
        for wait in self._waits.values():
            wait.asked.clear()
        self._cancelled += self._flights.values()
        self._flights = {}
        self._is_suspended = True
        self._fetcher.reset()

    def count(self) -> None:
        """Add the counters of the tiers."""
        self._counts.add_all(self._fetcher.counts())

    def _num_free(self) -> int:
        num_read = self._num_tiers * self._num_read
        return self._num_pages - num_read - self._fetcher.num_lost_pages() - self._num_used

    def _begin(self, item: Item, request_id: str) -> Flight:
        flight = Flight(item, self._fetcher.begin(item), request_id)
        self._flights[item.key] = flight
        self._num_used += item.num_pages
        return flight

    def _settle(self, request_id: str, now: float) -> None:
        """Let a request wait no more: its items that are not fetched are encoded."""
        self._settled.add(request_id)
        wait = self._waits.pop(request_id, None)
        if wait is None:
            return
        if wait.has_waited:
            self._counts.add("tier_waits")
            self._counts.add("tier_wait_seconds", now - wait.began)
        for key in wait.asked:
            flight = self._flights.get(key)
            if flight is not None:
                flight.leave(request_id)
