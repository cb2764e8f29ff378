"""The items that all ranks encode, by the agreement of a pipeline with the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitcache._native import StepPlan
from vitcache.cache.plan_leases import PlanLeases
from vitcache.pipeline.rank_states import RankState, RankStates, fail_with_other_rank
from vitcache.pipeline.step_item import Requests, State, StepItem

Agree = Callable[[Tensor], Tensor]


def agree_on_missing(
    agree: Agree,
    plan: StepPlan,
    requests: Requests,
    leases: PlanLeases,
    step_items: dict[int, StepItem],
) -> list[StepItem]:
    """Return the items that all ranks encode, hits and kept rows included.

    Missing features are loaded before the ranks agree. The host never waits for the owner of a claim, because
    the other ranks may not wait. A rank encodes even if another caller owns the claim; `Claim.epoch` is still
    the epoch that the rows are inserted in.

    Parameters
    ----------
    step_items
        The items that are not hits, by number. Receives the hits that all ranks encode. An item
        with kept rows is not a miss on this rank; if all ranks encode it, its kept rows are not placed.

    Raises
    ------
    ValueError
        If `agree` does not return one flag per item, clears the flag of a missing item, or sets the flag of
        an item that failed on this rank. With `RankStates`: as `RankStates.share_by_place`.
    """
    ranks = RankStates.of(agree)
    numbers = [number for number in range(len(plan)) if ranks is not None or not plan.has_rows(number)]
    if not numbers:
        return []
    for number in numbers:
        if number in step_items and not plan.has_rows(number):
            step_items[number].try_load()
    if ranks is None:
        missing = _ask(agree, plan, requests, numbers, step_items)
    else:
        missing = _share(ranks, plan, requests, leases, numbers, step_items)
    for step_item in missing:
        leases.forget(step_item.number)
    return missing


def _share(
    ranks: RankStates,
    plan: StepPlan,
    requests: Requests,
    leases: PlanLeases,
    numbers: Sequence[int],
    step_items: dict[int, StepItem],
) -> list[StepItem]:
    """Return the items that all ranks encode. An item that failed on any rank fails on this one.

    All ranks return the same items in the same order: an item whose equals differ between the ranks has
    failed.
    """
    states = []
    for number in numbers:
        step_item = step_items.get(number)
        if step_item is None or step_item.state is State.KEPT:
            states.append(RankState.HIT)
        elif step_item.state is State.FAILED:
            states.append(RankState.FAILED)
        else:
            states.append(RankState.HIT if plan.has_rows(number) else RankState.MISS)
    places = [plan.occurrences(number) for number in numbers]
    missing: list[StepItem] = []
    for number, state in zip(numbers, ranks.share_by_place(states, places), strict=True):
        if state is RankState.HIT:
            continue
        step_item = step_items.get(number)
        if step_item is None:
            step_item = step_items[number] = StepItem.of(plan, requests, number)
        if state is RankState.FAILED:
            fail_with_other_rank(step_item)
            leases.forget(number)
            continue
        if step_item.state is State.KEPT:
            step_item.set(State.MISSING, None)
        step_item.try_load()  # if it fails now, it fails on all ranks before the call of the encoder
        missing.append(step_item)
    return missing


def _ask(
    agree: Agree,
    plan: StepPlan,
    requests: Requests,
    numbers: Sequence[int],
    step_items: dict[int, StepItem],
) -> list[StepItem]:
    """Return the items whose flags a plain callable returns.

    If a rank failed to load a feature later, it would be absent from an encode of the other ranks.
    """
    miss = torch.tensor(
        [number in step_items and step_items[number].state is State.MISSING for number in numbers],
        device="cpu",
    )
    agreed = agree(miss.clone())
    if not isinstance(agreed, Tensor) or agreed.dtype != torch.bool or agreed.shape != miss.shape:
        raise ValueError(f"agree must return a bool tensor of {len(miss)} flags, got {agreed!r}")
    missing: list[StepItem] = []
    for flag_number, (number, flag) in enumerate(zip(numbers, agreed.tolist(), strict=True)):
        step_item = step_items.get(number)
        if flag and step_item is None:
            step_item = step_items[number] = StepItem.of(plan, requests, number)
            step_item.try_load()
        if step_item is None:
            continue
        if flag and step_item.state is State.KEPT:
            step_item.set(State.MISSING, None)
            step_item.try_load()
        if step_item.state is State.MISSING and not flag:
            raise ValueError(f"agree cleared flag {flag_number}, but its item is missing on this rank")
        if flag and step_item.failure is not None:
            raise ValueError(
                f"agree set flag {flag_number}, but its item failed on this rank"
            ) from step_item.failure.error
        if flag:
            missing.append(step_item)
    return missing
