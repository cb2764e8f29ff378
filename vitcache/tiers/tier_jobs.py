"""The jobs of a tier's worker: fetch, store, erase, revoke."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from vitcache.tiers.completion import Completion
from vitcache.tiers.weights_name import Weights

WantedName = tuple[bytes, int, int, bytes]  # key, number of rows, row width, digest of the tenant


class Wanted(Completion):
    """An entry that is being fetched, for all callers that want it.

    Any thread sets the flags. The worker that has the entry finishes it, and only then it leaves its table.

    Attributes
    ----------
    weights
        The weights whose rows are wanted.
    num_waiting
        Number of callers that have not cancelled it. It is not fetched for none.
    is_dropped
        Whether the key or its tenant was discarded or forgotten: no row of it may enter the cache.
    is_late
        Whether its tier is late. Then a later call does not wait for it.
    may_evict
        Whether host entries may be evicted for it.
    """

    __slots__ = ("_table", "is_dropped", "is_late", "may_evict", "name", "num_waiting", "weights")

    def __init__(
        self, name: WantedName, weights: Weights, table: WantedTable, may_evict: bool = True
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.num_waiting = 1
        self.is_dropped = False
        self.is_late = False
        self.may_evict = may_evict
        self._table = table

    @property
    def is_void(self) -> bool:
        """Whether it need not be fetched any more."""
        return self.is_dropped or self.num_waiting <= 0 or self.is_done

    def finish(self) -> None:
        """End the fetch, successful or not."""
        super().finish()
        self._table.remove(self)


class WantedTable:
    """The entries that are being fetched. Any thread may call any method.

    Two calls may begin to fetch one entry at the same time, and a late fetch may go on beside a newer one.
    The table keeps both, and `find` returns the last one.
    """

    __slots__ = ("_all", "_by_name")

    def __init__(self) -> None:
        self._all: dict[Wanted, None] = {}
        self._by_name: dict[WantedName, Wanted] = {}

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> tuple[Wanted, ...]:
        """Return every entry that is not finished."""
        return tuple(self._all)

    def find(self, name: WantedName) -> Wanted | None:
        """Return an entry of a name, or None."""
        return self._by_name.get(name)

    def add(self, wanted: Sequence[Wanted]) -> None:
        """Add entries; `find` returns these from now on."""
        self._all.update(dict.fromkeys(wanted))
        self._by_name.update((each.name, each) for each in wanted)

    def remove(self, wanted: Wanted) -> None:
        """Remove an entry."""
        self._all.pop(wanted, None)
        if self._by_name.get(wanted.name) is wanted:
            self._by_name.pop(wanted.name, None)


class FetchQueue(Protocol):
    """A tier's queue of fetches: a `TierRunner`."""

    def worthy(self, wanted: list[Wanted]) -> list[Wanted]:
        """Return the entries that are worth a fetch from the tier, and count the other ones."""

    def queue_fetch(self, job: FetchJob) -> bool:
        """Queue a fetch, and return whether it was accepted. Never waits."""


class FetchJob:
    """Entries that one tier is asked for, and then the tiers of `route` for those that it misses.

    Attributes
    ----------
    deadline
        Time of the breaker's clock from which on the tier is late.
    is_probe
        Whether the breaker is open, and this job tries the tier.
    is_late
        Whether the job was found to be late.
    """

    __slots__ = ("deadline", "is_late", "is_probe", "route", "timeout_s", "wanted", "weights")

    def __init__(
        self, wanted: list[Wanted], weights: Weights, route: Sequence[FetchQueue], timeout_s: float
    ) -> None:
        self.wanted = wanted
        self.weights = weights
        self.route = route
        self.timeout_s = timeout_s
        self.deadline = 0.0
        self.is_probe = False
        self.is_late = False


def finish_all(wanted: Sequence[Wanted]) -> None:
    """Finish entries that no tier is asked for any more."""
    for each in wanted:
        each.finish()


def send(wanted: list[Wanted], weights: Weights, route: Sequence[FetchQueue], timeout_s: float) -> None:
    """Queue a fetch of each entry with the first tier of `route` that it is worth and that accepts it.

    An entry that no tier accepts is missed.
    """
    left = wanted
    for number, runner in enumerate(route):
        worthy = runner.worthy(left)
        if worthy and runner.queue_fetch(FetchJob(worthy, weights, route[number + 1 :], timeout_s)):
            if len(worthy) == len(left):
                return
            queued = set(worthy)
            left = [each for each in left if each not in queued]
    finish_all(left)


class StoreJob(NamedTuple):
    """An entry that is copied to the tier, if it is in the cache when the job runs.

    `is_probe` as in `FetchJob`.
    """

    key: bytes
    num_rows: int
    row_width: int
    tenant: bytes
    num_bytes: int
    weights: Weights
    is_probe: bool = False


class Barrier(Completion):
    """A place in the queue of stores: done when all stores before it are done."""

    __slots__ = ()


class EraseJob(Completion):
    """The entries of a key, or of a tenant, that leave the tier.

    Attributes
    ----------
    num_erased
        Number of entries that the tier erased.
    error
        Why it did not, or None.
    """

    __slots__ = ("error", "key", "num_erased", "tenant")

    def __init__(self, key: bytes | None = None, tenant: bytes | None = None) -> None:
        super().__init__()
        self.key = key
        self.tenant = tenant
        self.num_erased = 0
        self.error: BaseException | None = None


class RevokeJob(Completion):
    """The weights whose earlier entries no process may find any more. `error` as in `EraseJob`."""

    __slots__ = ("error", "weights")

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights
        self.error: BaseException | None = None
