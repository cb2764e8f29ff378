"""`StepItem`: one item that a step does not find in the cache, and the state of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

from torch import Tensor

from vitcache._native import StepPlan
from vitcache.cache.claims import Claim
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.feature_mover import MovedFeature, UnmovedFeature
from vitcache.pipeline.items import Item, Items
from vitcache.ring.ticket import Ticket

# The items of each chunk of a step. They are read from the chunks once: the caller may change its list, or
# the `items` of a chunk, while features are loaded.
Requests = Sequence[Items]

# Key, number of rows and width of the rows, which equal items share.
Identity = tuple[bytes, int, int]


class State(Enum):
    """Where the rows of a step item are."""

    MISSING = auto()  # nowhere: the item must be encoded
    FRESH = auto()  # a tensor in the encoder's memory, which its next call may overwrite
    COPIED = auto()  # a tensor of the step, because the cache rejected the rows
    STORED = auto()  # a reservation: written to pages, not inserted yet
    GIVEN = auto()  # the caller's tensor, on the cache's device
    KEPT = auto()  # a tensor of an earlier step of the request, because the cache rejected the rows then
    FAILED = auto()  # nowhere: `failure` says why


class Failure(NamedTuple):
    """Why an item has no rows.

    `found`: the number of rows that the encoder returned, if it was wrong.
    """

    error: Exception
    found: int | None


class StepItem:
    """One item that a step does not find in the cache.

    Hits have no step item: the native plan and the leases of the step describe them.

    Attributes
    ----------
    number
        Number of the item in the plan.
    item, duplicates
        The first of the equal items, and the further equal items. If the feature of `item` cannot be loaded,
        `load` tries theirs.
    num_rows, row_width
        Rows of the item, and the elements of a row. If the step does not accept the width, the item fails.
    key
        Key of the rows in the cache. None: the item has precomputed rows, or hashing failed.
    feature
        The loaded feature. None: not loaded yet.
    moved, ticket
        The feature for the encoder, moved or unmoved, until it is encoded; and the ticket of the last copy
        of the feature of this item, or of an equal item, through a ring.
    claim
        The claim on `key`, through which the rows are inserted. Another caller may own it.
    state, rows, failure
        The state, with the tensor or reservation, or with the failure, that it names.
    """

    __slots__ = (
        "claim",
        "duplicates",
        "failure",
        "feature",
        "item",
        "key",
        "moved",
        "num_rows",
        "number",
        "row_width",
        "rows",
        "state",
        "ticket",
    )

    def __init__(self, number: int, item: Item, key: bytes | None, row_width: int) -> None:
        self.number = number
        self.item = item
        self.num_rows = item.num_rows
        self.row_width = row_width
        self.duplicates: list[Item] = []
        self.key = key
        self.feature: Any = None
        self.moved: MovedFeature | UnmovedFeature | None = None
        self.ticket: Ticket | None = None
        self.claim: Claim | None = None
        self.state = State.MISSING
        self.rows: Tensor | Reservation | None = None
        self.failure: Failure | None = None

    @classmethod
    def of(cls, plan: StepPlan, requests: Requests, number: int) -> StepItem:
        """Return a new step item for an item of a plan."""
        chunk, position = plan.occurrence(number)
        made = cls(number, requests[chunk][position], plan.key(number), plan.row_width(number))
        made.duplicates = [requests[chunk][position] for chunk, position in plan.duplicates(number)]
        misfit = plan.misfit(number)
        if misfit is not None:
            made.fail(ValueError(misfit))
        return made

    @property
    def identity(self) -> Identity | None:
        """Key, number of rows and width, which equal items share; None without a key."""
        return None if self.key is None else (self.key, self.num_rows, self.row_width)

    def tenant(self, default: str) -> str:
        """Return the tenant of the rows; `default` is that of the pipeline."""
        return default if self.item.tenant is None else self.item.tenant

    def set(self, state: State, rows: Tensor | Reservation | None) -> None:
        """Change the state, with the rows that it names."""
        self.state, self.rows = state, rows

    def fail(self, error: Exception, found: int | None = None) -> None:
        """Record `error` in place of rows."""
        self.set(State.FAILED, None)
        self.failure = Failure(error, found)

    def take_moved(self, moved: MovedFeature | UnmovedFeature | None) -> None:
        """Store a feature for the encoder, and its ticket; None changes nothing.

        A moved feature of an equal item is not for an `item` with ``move_feature=False``: then only the
        ticket is stored, so that `wait_until_read` waits for the copy.
        """
        if moved is None:
            return
        if moved.ticket is not None:
            self.ticket = moved.ticket
        if self.item.move_feature or isinstance(moved, UnmovedFeature):
            self.moved = moved

    def load(self) -> Any:
        """Return the feature; a callable feature is called once.

        Raises
        ------
        ValueError
            If the item has no feature.
        Exception
            The exception of a callable feature.
        """
        while self.feature is None:
            try:
                self.feature = load_feature(self.item)
            except Exception:
                if not self.duplicates:
                    raise
                self.item = self.duplicates.pop()
        return self.feature

    def try_load(self) -> None:
        """Load the feature of a missing item that was not moved yet; an exception becomes its error."""
        if self.moved is None and self.state is State.MISSING:
            try:
                self.load()
            except Exception as error:
                self.fail(error)


def load_feature(item: Item) -> Any:
    """Return the feature of an item; call it if it is callable. Raises as `StepItem.load`."""
    feature = item.feature() if callable(item.feature) else item.feature
    if feature is None:
        raise ValueError("the item has no feature, and its rows are not in the cache")
    return feature


def cancel_stored(step_items: Iterable[StepItem]) -> None:
    """Cancel the reservations that were not committed, so that a step that raises leaves none."""
    for step_item in step_items:
        if isinstance(step_item.rows, Reservation):
            step_item.rows.cancel()


def wait_until_read(step_items: Iterable[StepItem]) -> None:
    """Block the host until the ring's threads have read the features, which may then change.

    The copies to the device may still be in flight.
    """
    for step_item in step_items:
        if step_item.ticket is not None:
            step_item.ticket.wait_source_read()
