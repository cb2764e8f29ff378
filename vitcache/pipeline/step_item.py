"""`StepItem`: one item of a step, however often it occurs, with its key, its feature and its rows."""

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
    """One item that a step needs, and the state of its rows.

    Attributes
    ----------
    item, occurrences
        The first of the equal items, and the occurrences of all of them in the batch.
    num_rows
        Rows of the item.
    duplicates
        Step items of equal items. If the feature of `item` cannot be loaded, `load` tries theirs.
    key
        Key of the rows in the cache. None: the item has precomputed rows, or hashing failed.
    feature
        The loaded feature. None: not loaded yet.
    moved, ticket
        The feature on the encoder's device, until it is encoded; and the ticket of its copy, if it was
        copied through a ring.
    claim
        The claim on `key`, through which the rows are inserted. Another caller may own it.
    rows
        A lease (an entry of the cache), a reservation (written to pages, not inserted yet), or a tensor.
        None: not computed yet, or `error` is set.
    is_fresh
        Whether `rows` is memory of the encoder, which its next call may overwrite.
    error, found
        Why the item has no rows. `found`: the wrong number of rows that the encoder returned, if that is
        the reason.
    """

    __slots__ = (
        "claim",
        "duplicates",
        "error",
        "feature",
        "found",
        "is_fresh",
        "item",
        "key",
        "moved",
        "num_rows",
        "occurrences",
        "rows",
        "ticket",
    )

    def __init__(self, occurrence: Occurrence) -> None:
        self.item = occurrence.item
        self.num_rows = occurrence.item.num_rows
        self.occurrences = [occurrence]
        self.duplicates: list[StepItem] = []
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
        """Key and number of rows, which equal items share; None without a key."""
        return None if self.key is None else (self.key, self.num_rows)

    @property
    def is_missing(self) -> bool:
        """Whether the item must be encoded: it has neither rows nor an error."""
        return self.rows is None and self.error is None

    def fail(self, error: Exception, found: int | None = None) -> None:
        """Record `error` in place of rows."""
        self.rows, self.is_fresh, self.error, self.found = None, False, error, found

    def take_moved(self, moved: MovedFeature | None) -> None:
        """Store a moved feature and its ticket; None changes nothing."""
        if moved is not None:
            self.moved, self.ticket = moved, moved.ticket

    def load(self) -> Any:
        """Return the feature; a callable feature is called once.

        Raises
        ------
        ValueError
            If the item has no feature.
        Exception
            The exception of a callable feature.
        """
        if self.feature is None:
            try:
                feature = self.item.feature
                self.feature = feature() if callable(feature) else feature
                if self.feature is None:
                    raise ValueError("the item has no feature, and its rows are not in the cache")
            except Exception:
                if not self.duplicates:
                    raise
                self.feature = self.duplicates.pop().load()
        return self.feature

    def try_load(self) -> None:
        """Load the feature unless it was moved already; an exception becomes the item's error."""
        if self.moved is None and self.error is None:
            try:
                self.load()
            except Exception as error:
                self.fail(error)


def known_key(item: Item, namespace: bytes) -> bytes | None:
    """Return the item's own key, or the key that was computed for it in `namespace`; else None."""
    if item.key is None and item.digest is not None and item.digest[0] == namespace:
        return item.digest[1]
    return item.key


def find_keys(step_items: Iterable[StepItem], namespace: bytes, threads: KeyThreads) -> None:
    """Set the key of each step item, or its rows if they are precomputed.

    Features without a known key are loaded and hashed on `threads`, in parallel; the host waits for them.
    Their items store the key. An exception becomes the item's error.
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
    """Return one step item per `Item` object, in the order of the batch."""
    step_items: dict[int, StepItem] = {}
    for occurrence in occurrences:
        if id(occurrence.item) in step_items:
            step_items[id(occurrence.item)].occurrences.append(occurrence)
        else:
            step_items[id(occurrence.item)] = StepItem(occurrence)
    return list(step_items.values())


def merge_equal(step_items: Iterable[StepItem]) -> list[StepItem]:
    """Merge step items with equal key and number of rows; step items without a key are not merged."""
    merged: list[StepItem] = []
    by_identity: dict[tuple[bytes, int], StepItem] = {}
    for step_item in step_items:
        identity = step_item.identity
        original = step_item if identity is None else by_identity.setdefault(identity, step_item)
        if original is step_item:
            merged.append(step_item)
        else:
            original.occurrences += step_item.occurrences
            original.duplicates.append(step_item)
    return merged


def wait_until_read(step_items: Iterable[StepItem]) -> None:
    """Block the host until the ring's threads have read the features, which may then change.

    The copies to the device may still be in flight.
    """
    for step_item in step_items:
        if step_item.ticket is not None:
            step_item.ticket.wait_source_read()
