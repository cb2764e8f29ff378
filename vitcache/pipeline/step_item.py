"""What a step needs: each item once, wherever it appears, and where its rows come from."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from vitcache.keys.threads import KeyedFeature, KeyThreads
from vitcache.pages.lease import Lease
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.feature_mover import Moved
from vitcache.pipeline.items import Item
from vitcache.pipeline.plan import Use
from vitcache.ring.ticket import Ticket


class Need:
    """One item that a step needs, and what becomes of it.

    Attributes
    ----------
    item, uses
        The first of the equal items, and where all of them are in the batch.
    others
        Needs of equal items, which may have the feature where this one has none.
    key
        Under which its rows are kept. None: it has precomputed rows, or no key could be made.
    feature
        What a callable has loaded. None: the item's own, or not loaded yet.
    moved, ticket
        The feature on its way to the device, until it was encoded; and what tells when its source was read.
    rows
        Where its rows are: in the cache, in room in the cache that waits to be entered, or in a tensor.
    is_fresh
        Whether `rows` lie where the encoder put them, which may write over them in its next call.
    error, found
        Why there are none, and how many there were if that is why.
    """

    __slots__ = (
        "error",
        "feature",
        "found",
        "is_fresh",
        "item",
        "key",
        "moved",
        "others",
        "rows",
        "ticket",
        "uses",
    )

    def __init__(self, use: Use) -> None:
        self.item = use.item
        self.uses = [use]
        self.others: list[Need] = []
        self.key: bytes | None = None
        self.feature: Any = None
        self.moved: Moved | None = None
        self.ticket: Ticket | None = None
        self.rows: Tensor | Lease | Reservation | None = None
        self.is_fresh = False
        self.error: Exception | None = None
        self.found: int | None = None

    @property
    def identity(self) -> tuple[bytes, int] | None:
        """What items that are the same have in common; None for what has no key."""
        return None if self.key is None else (self.key, self.item.num_rows)

    @property
    def is_missing(self) -> bool:
        """Whether it is to be encoded: its rows are nowhere, and nothing is wrong with it."""
        return self.rows is None and self.error is None

    def fail(self, error: Exception, found: int | None = None) -> None:
        """Note why there are no rows."""
        self.rows, self.is_fresh, self.error, self.found = None, False, error, found

    def take_moved(self, moved: Moved | None) -> None:
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


def find_keys(needs: Iterable[Need], namespace: bytes, threads: KeyThreads) -> None:
    """Give each need its item's key; items remember those that are made. What is wrong is noted.

    What must be hashed is loaded and hashed on the threads, all at once.
    """
    hashed: list[tuple[Need, Future[KeyedFeature]]] = []
    for need in needs:
        item = need.item
        need.rows = item.rows
        need.key = None if item.rows is not None else known_key(item, namespace)
        if need.key is None and need.rows is None:
            future = threads.submit(need.load, namespace=namespace, extra=item.encoder_kwargs)
            hashed.append((need, future))
    for need, future in hashed:
        try:
            need.key = future.result().key
        except Exception as error:
            need.fail(error)
        else:
            need.item.digest = namespace, need.key


def by_item(uses: Iterable[Use]) -> list[Need]:
    """Return one need per item object, in the order of the batch."""
    needs: dict[int, Need] = {}
    for use in uses:
        if id(use.item) in needs:
            needs[id(use.item)].uses.append(use)
        else:
            needs[id(use.item)] = Need(use)
    return list(needs.values())


def unite(needs: Iterable[Need]) -> list[Need]:
    """Make one of needs whose items are the same, which is if key and number of rows are."""
    united: list[Need] = []
    first: dict[tuple[bytes, int], Need] = {}
    for need in needs:
        same = need if need.identity is None else first.setdefault(need.identity, need)
        if same is need:
            united.append(need)
        else:
            same.uses += need.uses
            same.others.append(need)
    return united


def wait_until_read(needs: Iterable[Need]) -> None:
    """Wait on the host until features may change: for the ring's threads, not for the device."""
    for need in needs:
        if need.ticket is not None:
            need.ticket.wait_source_read()
