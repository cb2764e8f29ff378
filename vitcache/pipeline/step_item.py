"""What a step needs: each item once, wherever it appears, and where its rows come from."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from vitcache.cache.claims import Claim
from vitcache.keys.threads import KeyedFeature, KeyThreads
from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.feature_mover import MovedFeature
from vitcache.pipeline.items import Item
from vitcache.pipeline.plan import Occurrence
from vitcache.ring.ticket import Ticket


class StepItem:
    """One item that a step needs, and what becomes of it.

    Attributes
    ----------
    item, occurrences
        The first of the equal items, and where all of them are in the batch.
    num_rows
        Rows of the item.
    others
        Step items of equal items, which may have the feature where this one has none.
    key
        Under which its rows are kept. None: it has precomputed rows, or no key could be made.
    feature
        What a callable has loaded. None: the item's own, or not loaded yet.
    moved, ticket
        The feature on its way to the device, until it was encoded; and what tells when its source was read.
    claim
        The right to encode it, through which its rows are entered; while it is looked up, perhaps another's.
    rows
        Where its rows are: in the cache, in room in the cache that waits to be entered, or in a tensor.
    is_fresh
        Whether `rows` lie where the encoder put them, which may write over them in its next call.
    error, found
        Why there are none, and how many there were if that is why.
    """

    __slots__ = (
        "claim",
        "error",
        "feature",
        "found",
        "is_fresh",
        "item",
        "key",
        "moved",
        "num_rows",
        "occurrences",
        "others",
        "rows",
        "ticket",
    )

    def __init__(self, occurrence: Occurrence) -> None:
        self.item = occurrence.item
        self.num_rows = occurrence.item.num_rows
        self.occurrences = [occurrence]
        self.others: list[StepItem] = []
        self.key: bytes | None = None
        self.feature: Any = None
        self.moved: MovedFeature | None = None
        self.ticket: Ticket | None = None
        self.claim: Claim | None = None
        self.rows: Tensor | Lease | Reservation | None = None
        self.is_fresh = False
        self.error: Exception | None = None
        self.found: int | None = None

    @property
    def identity(self) -> tuple[bytes, int] | None:
        """What items that are the same have in common; None for what has no key."""
        return None if self.key is None else (self.key, self.num_rows)

    @property
    def is_missing(self) -> bool:
        """Whether it is to be encoded: its rows are nowhere, and nothing is wrong with it."""
        return self.rows is None and self.error is None

    def fail(self, error: Exception, found: int | None = None) -> None:
        """Note why there are no rows."""
        self.rows, self.is_fresh, self.error, self.found = None, False, error, found

    def take_moved(self, moved: MovedFeature | None) -> None:
        """Have the feature on its way, or there."""
        if moved is not None:
            self.moved, self.ticket = moved, moved.ticket

    def load(self) -> Any:
        """Return the feature, which a callable loads once.

        Raises
        ------
        ValueError
            If there is none.
        Exception
            What the callable raises.
        """
        if self.feature is None:
            try:
                feature = self.item.feature
                self.feature = feature() if callable(feature) else feature
                if self.feature is None:
                    raise ValueError("the item has no feature, and the cache no rows for it")
            except Exception:
                if not self.others:
                    raise
                self.feature = self.others.pop().load()
        return self.feature

    def try_load(self) -> None:
        """Have the feature, or note why not; one that was moved is there."""
        if self.moved is None and self.error is None:
            try:
                self.load()
            except Exception as error:
                self.fail(error)


def known_key(item: Item, namespace: bytes) -> bytes | None:
    """Return the key that an item came with, or that was made for it before."""
    if item.key is None and item.digest is not None and item.digest[0] == namespace:
        return item.digest[1]
    return item.key


def find_keys(step_items: Iterable[StepItem], namespace: bytes, threads: KeyThreads) -> None:
    """Give each step item its item's key; items remember those that are made. What is wrong is noted.

    What must be hashed is loaded and hashed on the threads, all at once.
    """
    hashed: list[tuple[StepItem, Future[KeyedFeature]]] = []
    for step_item in step_items:
        item = step_item.item
        step_item.rows = item.rows
        step_item.key = None if item.rows is not None else known_key(item, namespace)
        if step_item.key is None and step_item.rows is None:
            future = threads.submit(step_item.load, namespace=namespace, extra=item.encoder_kwargs)
            hashed.append((step_item, future))
    for step_item, future in hashed:
        try:
            step_item.key = future.result().key
        except Exception as error:
            step_item.fail(error)
        else:
            step_item.item.digest = namespace, step_item.key


def one_per_object(occurrences: Iterable[Occurrence]) -> list[StepItem]:
    """Return one step item per item object, in the order of the batch."""
    step_items: dict[int, StepItem] = {}
    for occurrence in occurrences:
        if id(occurrence.item) in step_items:
            step_items[id(occurrence.item)].occurrences.append(occurrence)
        else:
            step_items[id(occurrence.item)] = StepItem(occurrence)
    return list(step_items.values())


def merge_equal(step_items: Iterable[StepItem]) -> list[StepItem]:
    """Make one of step items whose items are the same, which is if key and number of rows are."""
    merged: list[StepItem] = []
    first: dict[tuple[bytes, int], StepItem] = {}
    for step_item in step_items:
        same = step_item if step_item.identity is None else first.setdefault(step_item.identity, step_item)
        if same is step_item:
            merged.append(step_item)
        else:
            same.occurrences += step_item.occurrences
            same.others.append(step_item)
    return merged


def wait_until_read(step_items: Iterable[StepItem]) -> None:
    """Wait on the host until features may change: for the ring's threads, not for the device."""
    for step_item in step_items:
        if step_item.ticket is not None:
            step_item.ticket.wait_source_read()
