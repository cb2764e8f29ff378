"""The rows of a plan's items that are not shown as views of pages, found when they are read."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence, Sequence
from typing import Any

from torch import Tensor

from vitcache._native import StepPlan
from vitcache.adapters.vllm.store import Store
from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation


class PlannedRows(MutableSequence[Any]):
    """The rows of a plan's items by number: rows of pending entries, leases, or tensors.

    Parameters
    ----------
    plan
        The plan of a step.
    features
        vLLM's items of each chunk of the plan.
    store
        The worker's store, in a step.
    """

    def __init__(self, plan: StepPlan, features: Sequence[Sequence[Any]], store: Store) -> None:
        self._plan = plan
        self._features = features
        self._store = store
        self._rows: dict[int, Tensor | Lease | Reservation] = {}
        self._pending: dict[int, Reservation] = {}

    def find_pending(self, items: Iterable[int]) -> list[str]:
        """Find those of some items whose entries are pending. Return their identifiers."""
        pending = self._store.pending
        if not len(pending):
            return []
        found: list[str] = []
        for item in items:
            identifier = self._identifier(item)
            entry = pending.get(identifier)
            # Items of other numbers of rows can have the same identifier: the pages are written once.
            if entry is not None and identifier not in found:
                self._pending[item] = entry.reservation
                found.append(identifier)
        return found

    def reservations(self) -> list[Reservation | None]:
        """Return the argument ``store`` of the placement: the pages of pending entries, None for others."""
        return [self._pending.get(item) for item in range(len(self))]

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, item: Any) -> Any:
        rows = self._rows.get(item)
        if rows is None:
            rows = self._rows[item] = self._find(self._identifier(item))
        return rows

    def __setitem__(self, item: Any, rows: Any) -> None:
        self._rows[item] = rows

    def __delitem__(self, item: Any) -> None:
        raise TypeError("the items of a plan cannot be removed")

    def insert(self, index: int, value: Any) -> None:
        """Refuse the call: the items of a plan are fixed."""
        raise TypeError("the items of a plan are fixed")

    def _identifier(self, item: int) -> str:
        chunk, position = self._plan.occurrence(item)
        identifier: str = self._features[chunk][position].identifier
        return identifier

    def _find(self, identifier: str) -> Tensor | Lease:
        entry = self._store.pending.get(identifier)
        if entry is not None:
            return entry.source
        shown = self._store.on_device.shown.get(identifier)
        if shown is not None:
            return shown.lease
        rows = self._store.on_device.rows.get(identifier)
        if rows is None:
            raise RuntimeError(
                f"vLLM's encoder cache lacks {identifier!r}, which a request of the step needs"
            )
        return rows
