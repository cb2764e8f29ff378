"""The sources of a step's placement: rows that are not leased, and the pages that rows are stored in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableSequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from vitcache._native import StepPlan
from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.plan_leases import PlanLeases
from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.row_checks import check_precomputed_rows
from vitcache.pipeline.step_item import State, StepItem


class RowSources(MutableSequence[Any]):
    """The rows of a plan's items by number: a tensor, a reservation, or a lease that is made when it is read.

    Attributes
    ----------
    stores
        The reservations that the launch writes the rows of items to, by number.
    rejected
        Step items whose rows the cache rejected, with their rows in its dtype.
    """

    def __init__(self, num_items: int, leases: PlanLeases) -> None:
        self._num_items = num_items
        self._leases = leases
        self._rows: dict[int, Tensor | Reservation | Lease] = {}
        self.stores: dict[int, Reservation] = {}
        self.rejected: list[tuple[StepItem, Tensor]] = []

    def __len__(self) -> int:
        return self._num_items

    def __getitem__(self, item: Any) -> Any:
        if not 0 <= item < self._num_items:
            raise IndexError(f"item {item} does not exist, the number of items is {self._num_items}")
        if item not in self._rows:
            lease = self._leases.lease(item)
            if lease is None:
                raise RuntimeError(f"item {item} has neither rows nor a lease")
            self._rows[item] = lease
        return self._rows[item]

    def __setitem__(self, item: Any, rows: Any) -> None:
        self._rows[item] = rows

    def __delitem__(self, item: Any) -> None:
        raise TypeError("the items of a plan cannot be removed")

    def insert(self, index: int, value: Any) -> None:
        """Refuse the call: the items of a plan are fixed."""
        raise TypeError("the items of a plan are fixed")

    def __iter__(self) -> Iterator[Any]:
        return (self[item] for item in range(self._num_items))

    def store(self) -> list[Reservation | None] | None:
        """Return the argument ``store`` of a placement: one entry per item, or None if no rows are stored."""
        if not self.stores:
            return None
        return [self.stores.get(item) for item in range(self._num_items)]

    def commit(self, cache: EmbeddingCache, tenant: str = "") -> list[tuple[StepItem, Tensor]]:
        """Insert the rows that were written to pages, release the leases, and insert rejected rows.

        If a step pins the whole device tier, the cache rejects the step's last rows. Once the leases are
        released, a cache with a host tier can demote the leased entries and admit the last rows. `tenant` is
        that of the pipeline.

        Returns
        -------
        list of (StepItem, Tensor)
            The items whose rows were not inserted, with their rows in the cache's dtype.
        """
        # A placement on the CPU makes the reservation of a stored item its source: commit it once.
        for source in dict.fromkeys((*self._rows.values(), *self.stores.values())):
            if isinstance(source, Reservation):
                source.commit()
        self._leases.release()
        if not cache.has_host_tier:
            return self.rejected
        return [
            (step_item, rows)
            for step_item, rows in self.rejected
            if step_item.claim is not None and not step_item.claim.put(rows, tenant=step_item.tenant(tenant))
        ]


def collect_sources(
    plan: StepPlan,
    step_items: Iterable[StepItem],
    leases: PlanLeases,
    cache: EmbeddingCache,
    mover: FeatureMover,
    cleanup: ExitStack,
    tenant: str = "",
) -> RowSources:
    """Return the sources of all items, and reserve pages for rows that are still to be stored.

    Rows that the cache rejects are also rounded to its dtype. An item without rows gets zeros.

    Parameters
    ----------
    cleanup
        Cancels the reservations that are not committed when it closes.
    tenant
        The tenant of the pipeline.
    """
    sources = RowSources(len(plan), leases)
    sources.stores = leases.promote()
    for reservation in sources.stores.values():
        cleanup.enter_context(reservation)
    step_items = list(step_items)
    for step_item in step_items:
        if step_item.item.rows is not None and step_item.state is not State.FAILED:
            _take_precomputed(step_item, step_item.item.rows, cache, mover)
        rows = step_item.rows
        if isinstance(rows, Tensor) and rows.device.type == "cuda":  # the encoder's stream may own its memory
            rows.record_stream(torch.cuda.current_stream(rows.device))
        if step_item.state is State.STORED and isinstance(rows, Reservation):
            cleanup.enter_context(rows)
        elif step_item.claim is not None and isinstance(rows, Tensor):
            _reserve_or_reject(step_item, step_item.claim, rows, sources, cache, cleanup, tenant)
    # Zeros for failed items: as many rows as their longest run has tokens.
    failed = [step_item.number for step_item in step_items if step_item.state is State.FAILED]
    if failed:
        plan.read_from_start(failed)
    for step_item in step_items:
        sources[step_item.number] = step_item.rows
    for number in failed:
        zero = torch.zeros(1, cache.row_width, dtype=cache.dtype, device=cache.device)
        sources[number] = zero.expand(plan.needed_rows(number), -1)
    return sources


def _reserve_or_reject(
    step_item: StepItem,
    claim: Claim,
    rows: Tensor,
    sources: RowSources,
    cache: EmbeddingCache,
    cleanup: ExitStack,
    tenant: str,
) -> None:
    """Reserve pages for fresh rows; rows that the cache rejects are rounded to its dtype."""
    if step_item.state is State.FRESH:
        store = claim.reserve(
            step_item.num_rows, row_width=step_item.row_width, tenant=step_item.tenant(tenant)
        )
        if store is not None:
            sources.stores[step_item.number] = cleanup.enter_context(store)
            return
        try:
            rounded = rows.to(cache.dtype)
        except Exception as error:  # such as no memory
            step_item.fail(error)
            return
        if rounded is not rows:
            step_item.set(State.COPIED, rounded)
        rows = rounded
    if step_item.state in (State.FRESH, State.COPIED):
        sources.rejected.append((step_item, rows))


def _take_precomputed(step_item: StepItem, rows: Tensor, cache: EmbeddingCache, mover: FeatureMover) -> None:
    """Check an item's precomputed rows, and move them to the cache's device."""
    try:
        rows = check_precomputed_rows(rows, step_item.num_rows, step_item.row_width)
        if rows.device == cache.device:
            step_item.set(State.GIVEN, rows)
            return
        # Pinned rows are copied, too: a launch might read the originals after `embed` has returned.
        moved = mover.start(rows, is_cast=False)
        step_item.take_moved(moved)
        step_item.set(State.GIVEN, moved.ready())
    except Exception as error:
        step_item.fail(error)
