"""`Books`: the calls that a tier's worker makes of the cache. `vitcache.cache.tier_books` implements it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np

from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation
from vitcache.tiers.tier_jobs import StoreJob, Wanted
from vitcache.tiers.weights_name import Weights


class ReservedRows(NamedTuple):
    """Host pages for one entry, and their memory as `Transfer.parts`. The worker may write them at once."""

    reservation: Reservation
    parts: Sequence[np.ndarray]


class LeasedRows(NamedTuple):
    """Rows of one entry that are written, and their memory as `Transfer.parts`, until the lease is released.

    `parts` may be memory of the worker, which its next call of `read` writes. Then the lease is already
    released.
    """

    lease: Lease
    parts: Sequence[np.ndarray]


class Books(Protocol):
    """The cache, as the worker of a tier uses it. Only the worker's thread calls it, without any lock."""

    def on_own_stream(self) -> AbstractContextManager[object]:
        """Return a context in which the worker's own stream of the cache's device is current."""

    @property
    def weights(self) -> Weights:
        """The weights that the cache publishes now."""

    @property
    def memory(self) -> Sequence[np.ndarray]:
        """The memory that all parts are in, as `Tier.register` takes it. It only ever grows."""

    def row_bytes(self, row_width: int) -> int:
        """Bytes of a row of `row_width` elements."""

    def is_current(self, weights: Weights) -> bool:
        """Whether rows of these weights may be entered and published now."""

    def batches(self, wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
        """Divide entries into groups that need a small part of the host tier."""

    def reserve(self, wanted: Wanted) -> ReservedRows | None:
        """Reserve host pages, and wait until they can be written. None: too few, or the key is there."""

    def insert(self, wanted: Wanted, reservation: Reservation) -> bool:
        """Enter the rows of a reservation into the host tier; False if they are not wanted any more."""

    def read(self, job: StoreJob) -> LeasedRows | None:
        """Lease the rows of an entry, and wait until they are written and in host memory. None: it left."""

    def retract(self, job: StoreJob) -> None:
        """Let a later hit offer the entry again."""
