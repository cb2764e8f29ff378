"""Which wanted rows the cache serves, and which are this caller's to encode."""

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


class Wanted(Protocol):
    """Rows that somebody wants.

    Attributes
    ----------
    key
        Under which they are kept. None: they are no matter of the cache.
    num_rows
        How many there are to be. None: any number.
    rows
        Where they are. None: nowhere yet.
    claim
        The right to encode them, or a claim of another, once they were looked up in vain.
    error
        Why there will be none.
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


W = TypeVar("W", bound=Wanted)


def look_up(cache: EmbeddingCache, wanted: list[W], leases: list[Lease], held: ExitStack) -> list[W]:
    """Lease what is there, claim what is missing until `held` ends, and return that.

    Waits while another thread encodes one of them. Leases are added to `leases`, whose owner releases them.
    """
    missing = wanted
    while True:
        missing = _lease(cache, missing, leases)
        if not missing:
            return missing
        with ExitStack() as claims:
            claim_all(cache, missing, claims)
            busy = [one.claim for one in missing if one.claim is not None and not one.claim.is_mine]
            # What is there by now was entered since its look-up.
            if not busy and not any(one.key in cache for one in missing if one.key is not None):
                held.push(claims.pop_all())
                return missing
        # Our own claims are given back by now: two that hold some must not wait for each other.
        if busy:
            busy[0].wait()


def claim_all(cache: EmbeddingCache, wanted: Iterable[Wanted], held: ExitStack) -> None:
    """Claim every key until `held` ends. Nobody is waited for: a claim may be another's."""
    claims: dict[bytes, Claim] = {}  # two can have one key, and other numbers of rows
    for one in wanted:
        if one.key is not None:
            if one.key not in claims:
                claims[one.key] = held.enter_context(cache.claim(one.key))
            one.claim = claims[one.key]


def hits(wanted: Iterable[W]) -> Iterator[tuple[W, bytes, Lease]]:
    """Yield what the cache served, with key and lease."""
    for one in wanted:
        if one.key is not None and isinstance(one.rows, Lease):
            yield one, one.key, one.rows


def look_up_together(
    cache: EmbeddingCache, step_items: list[StepItem], leases: list[Lease], held: ExitStack, agree: Agree
) -> list[StepItem]:
    """Lease what is there; return what all ranks are to encode, there or not.

    What is missing is loaded before: a rank that failed to load an item later would leave it out of an encode
    that the others are in. Nobody is waited for, as other ranks may not wait: a claim is taken along for its
    epoch, whoever has it.

    Raises
    ------
    ValueError
        If `agree` returns no flags, clears one, or wants an item that failed on this rank.
    """
    featured = [step_item for step_item in step_items if step_item.item.rows is None]
    if not featured:
        return []
    for step_item in _lease(cache, featured, leases):
        step_item.try_load()
    miss = torch.tensor([step_item.is_missing for step_item in featured], device="cpu")
    agreed = agree(miss.clone())
    if not isinstance(agreed, Tensor) or agreed.dtype != torch.bool or agreed.shape != miss.shape:
        raise ValueError(f"agree must return {len(miss)} flags as a bool tensor, it returned {agreed!r}")
    flags = agreed.tolist()
    for number, (step_item, flag) in enumerate(zip(featured, flags, strict=True)):
        if flag:
            step_item.try_load()
        if step_item.is_missing and not flag:
            raise ValueError(f"agree cleared flag {number}, of an item that is missing here")
        if flag and step_item.error is not None:
            raise ValueError(f"agree set flag {number}, of an item that failed here") from step_item.error
    missing = [step_item for step_item, flag in zip(featured, flags, strict=True) if flag]
    for step_item in missing:
        step_item.rows = None
    claim_all(cache, missing, held)
    return missing


def _lease(cache: EmbeddingCache, wanted: Iterable[W], leases: list[Lease]) -> list[W]:
    """Lease what is there; return what is missing."""
    missing: list[W] = []
    for one in wanted:
        if one.rows is not None or one.error is not None:
            continue
        lease = None if one.key is None else cache.get(one.key, num_rows=one.num_rows)
        if lease is None:
            missing.append(one)
        else:
            one.rows = lease
            leases.append(lease)
    return missing
