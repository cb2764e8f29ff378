"""`RankStates`: the ranks of a tensor parallel tower share the states of items, and failures with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from vitcache.pipeline.step_item import State, StepItem


class RankState(IntEnum):
    """The state of an item before it is encoded. The largest one of all ranks is the state on each rank."""

    HIT = 0  # its rows are known
    MISS = 1
    FAILED = 2  # it cannot be loaded, hashed or copied


class RankStates:
    """Shares states through the method `states` of a pipeline's `agree`, such as that of `agree_over`.

    Parameters
    ----------
    exchange
        Gets one `RankState` per item, a uint8 tensor on the CPU, and returns the largest ones of all ranks.
    """

    def __init__(self, exchange: Callable[[Tensor], Any]) -> None:
        self._exchange = exchange

    @classmethod
    def of(cls, agree: Any) -> RankStates | None:
        """Return the object for an `agree`; None if `agree` is a plain callable, which takes flags."""
        exchange = getattr(agree, "states", None)
        return cls(exchange) if callable(exchange) else None

    def share(self, states: Sequence[RankState]) -> list[RankState]:
        """Return the largest state of each item over all ranks.

        Raises
        ------
        ValueError
            If `exchange` does not return one state per item, or a smaller one than that of this rank.
        """
        mine = torch.tensor([int(state) for state in states], dtype=torch.uint8, device="cpu")
        found = self._exchange(mine.clone())
        if not isinstance(found, Tensor) or found.dtype != torch.uint8 or found.shape != mine.shape:
            raise ValueError(f"agree.states must return a uint8 tensor of {len(mine)} states, got {found!r}")
        if bool((found < mine).any()) or bool((found > RankState.FAILED).any()):
            raise ValueError(
                f"agree.states must return the largest states of all ranks, got {found.tolist()} for the "
                f"states {mine.tolist()} of this rank"
            )
        return [RankState(state) for state in found.tolist()]

    def share_by_place(
        self, states: Sequence[RankState], places: Sequence[Sequence[tuple[int, int]]]
    ) -> list[RankState]:
        """Return the largest state of each item of a step over all ranks.

        Equal items are one item, but not on a rank that cannot hash one of them. So the ranks share a state
        for each place, which is where an item is in the chunks. If any item has failed, they do so twice:
        the first time tells a rank that an item failed at one of its places, and the second time tells the
        other ranks that it failed at all of them. Then each item has one state on all ranks.

        Parameters
        ----------
        states, places
            The state of each item on this rank, and its places: chunk, and number in the chunk.

        Raises
        ------
        ValueError
            As `share`.
        """
        in_order = sorted((place, item) for item, found in enumerate(places) for place in found)
        largest = list(states)
        for _ in range(2):
            shared = self.share([largest[item] for _, item in in_order])
            for (_, item), state in zip(in_order, shared, strict=True):
                largest[item] = max(largest[item], state)
            if RankState.FAILED not in shared:
                break
        return largest

    def fail_alike(self, step_items: Sequence[StepItem]) -> None:
        """Let the items of a call of the encoder fail that failed on any rank, or whose copy fails now.

        A rank would else leave an item out of a call that the other ranks make with it.
        """
        for step_item in step_items:
            if step_item.moved is not None:
                try:
                    step_item.moved.ready()
                except Exception as error:
                    step_item.fail(error)
        states = [
            RankState.FAILED if step_item.state is State.FAILED else RankState.MISS
            for step_item in step_items
        ]
        for step_item, state in zip(step_items, self.share(states), strict=True):
            if state is RankState.FAILED:
                fail_with_other_rank(step_item)


def fail_with_other_rank(step_item: StepItem) -> None:
    """Let an item fail that has failed on another rank, unless it has failed on this rank, too."""
    if step_item.state is not State.FAILED:
        step_item.fail(other_rank_error())


def other_rank_error() -> RuntimeError:
    """Return the cause of the failure of an item that has not failed on this rank."""
    return RuntimeError("the item failed on another rank, whose error has the reason")
