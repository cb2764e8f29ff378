"""`KeptRows`: rows that the cache rejected, kept until the last chunk of their request is placed."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitcache._native import StepPlan
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.locks import new_lock
from vitcache.device.streams import record_event
from vitcache.pipeline.items import Items
from vitcache.pipeline.step_item import Identity, Requests, State, StepItem

logger = logging.getLogger("vitcache.pipeline")

NO_EPOCH = -1


class Kept(NamedTuple):
    """Rows of one item of a request.

    Attributes
    ----------
    rows
        Rows in the cache's dtype, on its device.
    event
        The event behind the work that writes the rows; None on the CPU.
    stop
        The end of the last span of the item, and of its equals in the request.
    """

    rows: Tensor
    event: Any
    stop: int


class KeptRows:
    """Rows of unfinished requests that the cache rejected, so that no item is encoded once per chunk.

    Rows are kept for one `Items` object. They are dropped if a chunk that reaches the end of the item's last
    span was placed, if the `Items` object dies, or if the cache begins a new epoch. If one encode serves
    several requests, they share its rows, which are counted once. If `max_bytes` are in use, further rows are
    not kept: the earliest requests are the first to finish.

    Parameters
    ----------
    cache
        The cache that rejected the rows.
    max_bytes
        Most bytes of all kept rows. They are on the cache's device, outside of the cache's budget.

    Notes
    -----
    Any thread may call any method.
    """

    def __init__(self, cache: EmbeddingCache, max_bytes: int) -> None:
        self._cache = cache
        self._max_bytes = max_bytes
        # By `id` of the `Items` object. The weak reference removes the request when the object dies.
        self.requests: dict[int, tuple[weakref.ref[Items], dict[Identity, Kept]]] = {}
        self._epoch = NO_EPOCH
        self._lock = new_lock()

    def __len__(self) -> int:
        """Return the number of requests with kept rows."""
        return len(self.requests)

    @property
    def num_bytes(self) -> int:
        """Bytes of all kept rows."""
        with self._lock:
            self._drop_earlier_epochs()
            return sum(self._bytes_by_rows().values())

    def has_any(self, requests: Requests) -> bool:
        """Whether rows are kept for one of some requests. Drops the rows of earlier epochs."""
        with self._lock:
            self._drop_earlier_epochs()
        return not self.requests.keys().isdisjoint(map(id, requests))

    def serve(self, plan: StepPlan, requests: Requests, step_items: Iterable[StepItem]) -> None:
        """Give the missing items of a step the rows that are kept for their requests.

        The current stream waits for the work that writes the rows.
        """
        if not self.requests:
            return
        for step_item in step_items:
            if step_item.state is State.MISSING and step_item.identity is not None:
                places = plan.occurrences(step_item.number)
                kept = self._find([requests[chunk] for chunk, _ in places], step_item.identity)
                if kept is not None:
                    if kept.event is not None:
                        torch.cuda.current_stream(self._cache.device).wait_event(kept.event)
                    step_item.set(State.KEPT, kept.rows)

    def keep(
        self,
        rejected: Iterable[tuple[StepItem, Tensor]],
        plan: StepPlan,
        requests: Requests,
        namespace: bytes,
        *,
        is_placed: bool = True,
    ) -> None:
        """Keep rejected rows for the requests that need them after this step.

        Call it while the rows in the encoder's memory are valid, on a stream that is ordered behind them.

        Parameters
        ----------
        rejected
            Step items with a claim, and their rows in the cache's dtype. The rows of a `FRESH` item are
            copied; all other rows belong to the step.
        is_placed
            Whether the step places the rows, so that requests which end in this step need no rows later.
        """
        if self._max_bytes == 0:
            return
        for step_item, rows in rejected:
            if step_item.identity is None or step_item.claim is None:
                continue
            targets = []
            for chunk, position in plan.occurrences(step_item.number):
                stop = requests[chunk].arrays.last_stop(position, namespace)
                if not is_placed or stop > plan.stop(chunk):
                    targets.append((requests[chunk], stop))
            if targets and self._has_room(rows.nbytes):
                if step_item.state is State.FRESH and rows is step_item.rows:
                    try:
                        rows = rows.clone()
                    except (MemoryError, RuntimeError) as error:  # torch's error if memory is exhausted
                        logger.warning("rows of %d bytes are not kept: %s", rows.nbytes, error)
                        continue
                kept = rows, record_event(self._cache.device)
                self._add(step_item.identity, step_item.claim.epoch, targets, *kept)

    def finish(self, plan: StepPlan, requests: Requests) -> None:
        """Drop the rows that no chunk needs after the placed chunks of a step."""
        for chunk, request in enumerate(requests):
            if id(request) in self.requests:
                with self._lock:
                    self._keep_after(request, plan.stop(chunk))

    def clear(self) -> None:
        """Drop all rows."""
        with self._lock:
            self.requests.clear()

    def _find(self, requests: Sequence[Items], identity: Identity) -> Kept | None:
        with self._lock:
            self._drop_earlier_epochs()
            for request in requests:
                _, items = self.requests.get(id(request), (None, {}))
                if identity in items:
                    return items[identity]
        return None

    def _has_room(self, num_bytes: int) -> bool:
        with self._lock:
            self._drop_earlier_epochs()
            return sum(self._bytes_by_rows().values()) + num_bytes <= self._max_bytes

    def _add(
        self, identity: Identity, epoch: int, targets: list[tuple[Items, int]], rows: Tensor, event: Any
    ) -> None:
        with self._lock:
            self._drop_earlier_epochs()
            if epoch != self._epoch:  # the encode began before a new epoch
                return
            for request, _ in targets:  # replaced: the rows were encoded again, for another rank
                self.requests.get(id(request), (None, {}))[1].pop(identity, None)
            if sum(self._bytes_by_rows().values()) + rows.nbytes > self._max_bytes:
                return
            for request, stop in targets:
                number = id(request)
                if number not in self.requests:
                    self.requests[number] = (
                        weakref.ref(request, partial(_forget, self.requests, number)),
                        {},
                    )
                self.requests[number][1][identity] = Kept(rows, event, stop)

    def _keep_after(self, request: Items, stop: int) -> None:
        _, items = self.requests.get(id(request), (None, {}))
        for identity, kept in list(items.items()):
            if kept.stop <= stop:
                items.pop(identity, None)
        if not items:
            self.requests.pop(id(request), None)

    def _bytes_by_rows(self) -> dict[int, int]:
        """Return the bytes of each tensor. A request may die during the loop, so the dict is copied first."""
        return {
            id(kept.rows): kept.rows.nbytes
            for _, items in self.requests.copy().values()
            for kept in items.values()
        }

    def _drop_earlier_epochs(self) -> None:
        epoch = self._cache.epoch
        if epoch != self._epoch:
            self.requests.clear()
            self._epoch = epoch


def _forget(requests: dict[int, Any], number: int, _: object) -> None:
    """Drop the rows of a request that died. It may do so in a thread that holds the lock: this takes none."""
    requests.pop(number, None)
