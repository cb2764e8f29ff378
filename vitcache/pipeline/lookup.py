"""The misses and the hits of a step, and claims on the keys of missing items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Protocol

from vitcache._native import StepPlan
from vitcache.cache.claims import Claim
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.plan_leases import PlanLeases
from vitcache.pages.lease import Lease
from vitcache.pipeline.step_item import Requests, State, StepItem


class ClaimedItem(Protocol):
    """An item as `claim_all` sees it: its key, or None; and the claim on it. Another caller may own it."""

    claim: Claim | None

    @property
    def key(self) -> bytes | None:
        """See above."""


def claim_all(cache: EmbeddingCache, items: Iterable[ClaimedItem], cleanup: ExitStack) -> None:
    """Claim the key of every item until `cleanup` closes; never waits.

    If another caller owns the claim on a key, ``item.claim.is_mine`` is False.
    """
    claims: dict[bytes, Claim] = {}  # items with one key and different numbers of rows share a claim
    for item in items:
        if item.key is not None:
            if item.key not in claims:
                claims[item.key] = cleanup.enter_context(cache.claim(item.key))
            item.claim = claims[item.key]


def release_claims(items: Iterable[ClaimedItem]) -> None:
    """Release the claims of items that are not released yet.

    An interrupt of the clean-up of a step can leave a claim, and another thread would wait for it until the
    garbage collector frees the step.
    """
    for item in items:
        if item.claim is not None:
            item.claim.release()


def claim_or_wait(
    cache: EmbeddingCache, items: Sequence[ClaimedItem], cleanup: ExitStack, call: str = "Claim.wait"
) -> bool:
    """Claim the keys of items that a look-up missed; or wait for the owner of one of them.

    Parameters
    ----------
    call
        Name of the public call, for the message of the error.

    Returns
    -------
    bool
        True: this caller owns all claims, until `cleanup` closes. False: it owns none of them, and looks the
        items up again.

    Raises
    ------
    RuntimeError
        If the owner is a call of this thread, or waits for this thread.
    """
    try:
        with ExitStack() as claims:
            claim_all(cache, items, claims)
            busy = [item.claim for item in items if item.claim is not None and not item.claim.is_mine]
            # An entry may have been inserted between the look-up and the claim.
            if not busy and not any(item.key in cache for item in items if item.key is not None):
                cleanup.push(claims.pop_all())
                return True
    except BaseException:
        release_claims(items)
        raise
    # The claims of this call are released now: two callers that own claims could wait for each other.
    if busy:
        busy[0].wait(call=call)
    return False


def collect_misses(
    plan: StepPlan, requests: Requests, leases: PlanLeases, hashed: Iterable[StepItem]
) -> dict[int, StepItem]:
    """Return a step item for each item of a plan that has no lease, by its number and in ascending order.

    `hashed`: the items whose features were loaded to compute their keys.
    """
    loaded = {step_item.number: step_item for step_item in hashed}
    return {number: loaded.get(number) or StepItem.of(plan, requests, number) for number in leases.misses()}


def hits(
    plan: StepPlan, requests: Requests, leases: PlanLeases, step_items: dict[int, StepItem]
) -> Iterator[tuple[StepItem, bytes, Lease]]:
    """Yield each item with a feature that the cache served, with its key and a lease."""
    for number in range(len(plan)):
        key, lease = plan.key(number), None
        if number not in step_items and key is not None:
            lease = leases.lease(number)
        if key is not None and lease is not None:
            with lease:
                step_item = StepItem.of(plan, requests, number)
                if step_item.item.feature is not None:
                    yield step_item, key, lease


def claim_missing(
    cache: EmbeddingCache,
    plan: StepPlan,
    leases: PlanLeases,
    step_items: dict[int, StepItem],
    cleanup: ExitStack,
    call: str = "Claim.wait",
) -> list[StepItem]:
    """Claim the keys of missing items, and return the items that this caller must encode.

    On return this caller owns the claim on every returned item that has a key. If another caller owns one
    of the claims, the host waits for that owner, and this caller looks the items up again.

    Parameters
    ----------
    leases, step_items
        Items that another caller inserted get a lease, and are removed from `step_items`.
    cleanup
        Releases the claims when it closes.
    call
        As in `claim_or_wait`, which may raise RuntimeError.
    """
    missing = [item for item in step_items.values() if item.state is State.MISSING and item.item.rows is None]
    while missing and not claim_or_wait(cache, missing, cleanup, call):
        keys: list[bytes | None] = [None] * len(plan)
        num_rows, row_widths = [-1] * len(plan), [-1] * len(plan)
        for step_item in missing:
            keys[step_item.number], num_rows[step_item.number] = step_item.key, step_item.num_rows
            row_widths[step_item.number] = step_item.row_width
        leases.look_up_again(keys, num_rows, row_widths)
        still_missing = set(leases.misses())
        for step_item in missing:
            if step_item.number not in still_missing:
                del step_items[step_item.number]
        missing = [step_item for step_item in missing if step_item.number in still_missing]
    return missing
