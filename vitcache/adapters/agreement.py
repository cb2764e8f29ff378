"""`Agreement`: ranks compare states of items, and numbers, by all-reduces of one size."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

# A message has two numbers and the states of up to 62 items: 256 bytes, whatever it says.
MESSAGE_STATES = 62
_COMPARED = 1 << 30  # in the first number of a message of `are_equal`; a step has fewer items


class Agreement:
    """The `agree` of `agree_over`. Every rank must make the same calls in the same order, from one thread.

    Parameters
    ----------
    groups
        Process groups of torch.distributed that take CPU tensors. Each call is one all-reduce over each
        group, one after the other: with two groups, over the rows and then the columns of a grid of ranks.

    Notes
    -----
    All calls send messages of one size. So ranks whose calls differ get an error, and do not wait for ever.
    """

    def __init__(self, groups: Sequence[Any]) -> None:
        self._groups = tuple(groups)

    def __call__(self, miss: Tensor) -> Tensor:
        """Return the flags that at least one rank has set. Raises as `states`."""
        return self.states(miss).bool()

    def states(self, states: Tensor) -> Tensor:
        """Return the largest state of each item over all ranks, a uint8 tensor on the CPU.

        Parameters
        ----------
        states
            One number from 0 to 255 per item, as `RankStates` makes them.

        Raises
        ------
        ValueError
            If the ranks pass different numbers of items; on every rank.
        RuntimeError
            If another rank is in another call; on every rank.
        """
        flags = states.to("cpu", torch.int32)
        message = torch.zeros(2 + MESSAGE_STATES, dtype=torch.int32, device="cpu")
        # An all-reduce of tensors of different lengths is undefined. The maximum of (n, -n) gives the largest
        # and the smallest number of items.
        message[0], message[1] = len(flags), -len(flags)
        message[2 : 2 + len(flags)] = flags[:MESSAGE_STATES]
        self._reduce(message)
        most, least = int(message[0]), -int(message[1])
        if most >= _COMPARED:
            raise RuntimeError("the calls of the ranks differ: one of them compares a number")
        if most != least:
            raise ValueError(
                f"ranks must have equal numbers of items in one step, got {least} to {most}; this rank has "
                f"{len(flags)}"
            )
        first = message[2 : 2 + len(flags)]
        if len(flags) <= MESSAGE_STATES:
            return first.to(torch.uint8)
        rest = flags[MESSAGE_STATES:].clone()
        self._reduce(rest)
        return torch.cat([first, rest]).to(torch.uint8)

    def are_equal(self, number: int, timeout: timedelta | None = None) -> bool:
        """Return whether all ranks pass the same number, from 0 to 2**30 - 1.

        Parameters
        ----------
        timeout
            Longest time to wait for the other ranks in each group; None: the time limit of the group.

        Raises
        ------
        RuntimeError
            If a rank does not make the call in time.
        """
        message = torch.zeros(2 + MESSAGE_STATES, dtype=torch.int32, device="cpu")
        message[0], message[1] = _COMPARED | number, -(_COMPARED | number)
        self._reduce(message, timeout)
        return int(message[0]) == -int(message[1])

    def _reduce(self, message: Tensor, timeout: timedelta | None = None) -> None:
        from torch import distributed

        for group in self._groups:
            work = distributed.all_reduce(message, distributed.ReduceOp.MAX, group, async_op=True)
            if work is not None:  # this rank is in the group
                work.wait() if timeout is None else work.wait(timeout)
