"""Which needs of a step the cache serves, and which are this caller's to encode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pipeline.step_item import Need

Agree = Callable[[Tensor], Tensor]


def look_up(cache: EmbeddingCache, needs: list[Need], held: ExitStack) -> list[Need]:
    """Lease what is there and claim what is missing, both until `held` ends; return the missing.

    Waits while another thread encodes one of them.
    """
    missing = [need for need in needs if need.is_missing]
    while True:
        with ExitStack() as claims:
            busy = _lease_or_claim_all(cache, missing, held, claims)
            missing = [need for need in missing if need.is_missing]
            if busy is None:
                held.push(claims.pop_all())
                return missing
        # Our own claims are given back by now: two that hold some must not wait for each other.
        busy.wait()


def look_up_together(cache: EmbeddingCache, needs: list[Need], held: ExitStack, agree: Agree) -> list[Need]:
    """Lease what is there until `held` ends; return what all ranks are to encode, there or not.

    What is missing is loaded before: a rank that failed to load an item later would leave it out of an encode
    that the others are in.

    Raises
    ------
    ValueError
        If `agree` returns no flags, clears one, or wants an item that failed on this rank.
    """
    featured = [need for need in needs if need.item.rows is None]
    if not featured:
        return []
    for need in featured:
        _lease(cache, need, held)
        if need.is_missing:
            need.try_load()
    miss = torch.tensor([need.is_missing for need in featured], device="cpu")
    agreed = agree(miss.clone())
    if not isinstance(agreed, Tensor) or agreed.dtype != torch.bool or agreed.shape != miss.shape:
        raise ValueError(f"agree must return {len(miss)} flags as a bool tensor, it returned {agreed!r}")
    flags = agreed.tolist()
    for number, (need, flag) in enumerate(zip(featured, flags, strict=True)):
        if flag:
            need.try_load()
        if need.is_missing and not flag:
            raise ValueError(f"agree cleared flag {number}, of an item that is missing here")
        if flag and need.error is not None:
            raise ValueError(f"agree set flag {number}, of an item that failed here") from need.error
    missing = [need for need, flag in zip(featured, flags, strict=True) if flag]
    for need in missing:
        need.rows = None
    return missing


def _lease(cache: EmbeddingCache, need: Need, held: ExitStack) -> None:
    if need.is_missing and need.key is not None:
        lease = cache.get(need.key, num_rows=need.item.num_rows)
        if lease is not None:
            need.rows = held.enter_context(lease)


def _lease_or_claim_all(
    cache: EmbeddingCache, needs: list[Need], held: ExitStack, claims: ExitStack
) -> Claim | None:
    """Go through all, or to the first that is another's: that claim is returned."""
    mine: set[bytes] = set()  # two needs can have one key, and other numbers of rows
    for need in needs:
        _lease(cache, need, held)
        while need.is_missing and need.key is not None and need.key not in mine:
            claim = claims.enter_context(cache.claim(need.key))
            if not claim.is_mine:
                return claim
            if need.key not in cache:
                mine.add(need.key)
                break
            # Whoever had the claim before has entered it since the look-up.
            claim.release()
            _lease(cache, need, held)
    return None
