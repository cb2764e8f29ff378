"""Which items of a step the cache serves, and which are this caller's to encode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pipeline.step_item import StepItem

Agree = Callable[[Tensor], Tensor]


def look_up(cache: EmbeddingCache, step_items: list[StepItem], held: ExitStack) -> list[StepItem]:
    """Lease what is there and claim what is missing, both until `held` ends; return the missing.

    Waits while another thread encodes one of them.
    """
    missing = [step_item for step_item in step_items if step_item.is_missing]
    while True:
        with ExitStack() as claims:
            busy = _lease_or_claim_all(cache, missing, held, claims)
            missing = [step_item for step_item in missing if step_item.is_missing]
            if busy is None:
                held.push(claims.pop_all())
                return missing
        # Our own claims are given back by now: two that hold some must not wait for each other.
        busy.wait()


def look_up_together(
    cache: EmbeddingCache, step_items: list[StepItem], held: ExitStack, agree: Agree
) -> list[StepItem]:
    """Lease what is there until `held` ends; return what all ranks are to encode, there or not.

    What is missing is loaded before: a rank that failed to load an item later would leave it out of an encode
    that the others are in.

    Raises
    ------
    ValueError
        If `agree` returns no flags, clears one, or wants an item that failed on this rank.
    """
    featured = [step_item for step_item in step_items if step_item.item.rows is None]
    if not featured:
        return []
    for step_item in featured:
        _lease(cache, step_item, held)
        if step_item.is_missing:
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
    return missing


def _lease(cache: EmbeddingCache, step_item: StepItem, held: ExitStack) -> None:
    if step_item.is_missing and step_item.key is not None:
        lease = cache.get(step_item.key, num_rows=step_item.item.num_rows)
        if lease is not None:
            step_item.rows = held.enter_context(lease)


def _lease_or_claim_all(
    cache: EmbeddingCache, step_items: list[StepItem], held: ExitStack, claims: ExitStack
) -> Claim | None:
    """Go through all, or to the first that is another's: that claim is returned."""
    mine: set[bytes] = set()  # two step items can have one key, and other numbers of rows
    for step_item in step_items:
        _lease(cache, step_item, held)
        while step_item.is_missing and step_item.key is not None and step_item.key not in mine:
            claim = claims.enter_context(cache.claim(step_item.key))
            if not claim.is_mine:
                return claim
            if step_item.key not in cache:
                mine.add(step_item.key)
                break
            # Whoever had the claim before has entered it since the look-up.
            claim.release()
            _lease(cache, step_item, held)
    return None
