"""Look-up of a step's items: lease the rows in the cache, and claim the keys of the missing items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease
from vitcache.pipeline.step_item import StepItem

Agree = Callable[[Tensor], Tensor]


class LookupItem(Protocol):
    """An item as the functions of this module see it.

    Attributes
    ----------
    key
        Key of the rows in the cache. None: the item is neither looked up nor claimed.
    num_rows
        Expected number of rows. None: any number.
    rows
        The rows, if they exist. For a hit, the look-up sets `rows` to the lease.
    claim
        The claim on `key`, set if the look-up missed. Another caller may own it.
    error
        Why the item has no rows. An item with an error is not looked up.
    """

    rows: Any
    claim: Claim | None
    error: Exception | None

    @property
    def key(self) -> bytes | None:
        """See above."""

    @property
    def num_rows(self) -> int | None:
        """See above."""


ItemT = TypeVar("ItemT", bound=LookupItem)


def look_up(
    cache: EmbeddingCache, items: list[ItemT], leases: list[Lease], cleanup: ExitStack
) -> list[ItemT]:
    """Lease the rows of items in the cache, claim the missing keys, and return the missing items.

    On return this caller owns the claim on every returned item that has a key. If another caller owns one
    of the claims, the host waits for that owner, and this caller looks the items up again.

    Parameters
    ----------
    leases
        Receives the leases. The caller releases them.
    cleanup
        Releases the claims when it closes.
    """
    missing = items
    while True:
        missing = _lease(cache, missing, leases)
        if not missing:
            return missing
        with ExitStack() as claims:
            claim_all(cache, missing, claims)
            busy = [item.claim for item in missing if item.claim is not None and not item.claim.is_mine]
            # An entry may have been inserted between the look-up and the claim.
            if not busy and not any(item.key in cache for item in missing if item.key is not None):
                cleanup.push(claims.pop_all())
                return missing
        # The claims of this call are released now: two callers that own claims could wait for each other.
        if busy:
            busy[0].wait()


def claim_all(cache: EmbeddingCache, items: Iterable[LookupItem], cleanup: ExitStack) -> None:
    """Claim the key of every item until `cleanup` closes; never waits.

    If another caller owns the claim on a key, ``item.claim.is_mine`` is False.
    """
    claims: dict[bytes, Claim] = {}  # items with one key and different numbers of rows share a claim
    for item in items:
        if item.key is not None:
            if item.key not in claims:
                claims[item.key] = cleanup.enter_context(cache.claim(item.key))
            item.claim = claims[item.key]


def hits(items: Iterable[ItemT]) -> Iterator[tuple[ItemT, bytes, Lease]]:
    """Yield each item that the cache served, with its key and its lease."""
    for item in items:
        if item.key is not None and isinstance(item.rows, Lease):
            yield item, item.key, item.rows


def look_up_together(
    cache: EmbeddingCache, step_items: list[StepItem], leases: list[Lease], cleanup: ExitStack, agree: Agree
) -> list[StepItem]:
    """Lease the rows of items in the cache, and return the items that all ranks encode, hits included.

    Missing features are loaded before `agree` is called. If a rank failed to load a feature later, it would
    be absent from an encode of the other ranks. The host never waits for the owner of a claim, because the
    other ranks may not wait. A rank encodes even if another caller owns the claim; `Claim.epoch` is still the
    epoch that the rows are inserted in.

    Parameters
    ----------
    leases, cleanup
        As in `look_up`.

    Raises
    ------
    ValueError
        If `agree` does not return one flag per item, clears the flag of a missing item, or sets the flag of
        an item that failed on this rank.
    """
    encodable = [step_item for step_item in step_items if step_item.item.rows is None]
    if not encodable:
        return []
    for step_item in _lease(cache, encodable, leases):
        step_item.try_load()
    miss = torch.tensor([step_item.is_missing for step_item in encodable], device="cpu")
    agreed = agree(miss.clone())
    if not isinstance(agreed, Tensor) or agreed.dtype != torch.bool or agreed.shape != miss.shape:
        raise ValueError(f"agree must return a bool tensor of {len(miss)} flags, got {agreed!r}")
    flags = agreed.tolist()
    for number, (step_item, flag) in enumerate(zip(encodable, flags, strict=True)):
        if flag:
            step_item.try_load()
        if step_item.is_missing and not flag:
            raise ValueError(f"agree cleared flag {number}, but its item is missing on this rank")
        if flag and step_item.error is not None:
            raise ValueError(
                f"agree set flag {number}, but its item failed on this rank"
            ) from step_item.error
    missing = [step_item for step_item, flag in zip(encodable, flags, strict=True) if flag]
    for step_item in missing:
        step_item.rows = None
    claim_all(cache, missing, cleanup)
    return missing


def _lease(cache: EmbeddingCache, items: Iterable[ItemT], leases: list[Lease]) -> list[ItemT]:
    """Look up the items that have neither rows nor an error; return the misses."""
    missing: list[ItemT] = []
    for item in items:
        if item.rows is not None or item.error is not None:
            continue
        lease = None if item.key is None else cache.get(item.key, num_rows=item.num_rows)
        if lease is None:
            missing.append(item)
        else:
            item.rows = lease
            leases.append(lease)
    return missing
