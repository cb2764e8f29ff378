"""The common part of `EmbedCall` and `ScatterCall`: from the rows of a call to its placement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitcache.pages.reservation import Reservation
from vitcache.placement import dispatch
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.placement_table import PlacementTable


class PlacementCall(ABC):
    """One call in two halves: the constructor of a subclass checks it, then `run` writes the rows.

    Before rows exist, `check_spans` of the subclass checks the spans, too, and sets `_are_spans_checked`.
    """

    __slots__ = ("_are_spans_checked", "destination")

    _are_spans_checked: bool
    destination: Destination

    def run(self, embeddings: Any, spans: Any, store: Sequence[Reservation | None] | None) -> Tensor:
        """Write all rows and return the output. After `check_spans`, `spans` must be the spans passed to it.

        Parameters
        ----------
        embeddings, spans, store
            As in `scatter_embeddings`.
        """
        if isinstance(embeddings, PlacementTable):
            return self._run_table(embeddings, spans, store)
        if not self._are_spans_checked:
            dispatch.refuse_capture(self.destination.device)
        placed = Placement(
            self.destination, embeddings, spans, store, is_overlap_checked=self._are_spans_checked
        )
        return self.run_placed(placed, store)

    @abstractmethod
    def run_placed(self, placed: Placement, store: Any = None) -> Tensor:
        """Write all rows of a placement for `destination`, and return the output."""

    @abstractmethod
    def _run_table(self, table: PlacementTable, spans: Any, store: Any) -> Tensor:
        """`run` with a `PlacementTable`."""
