"""Calls of a ring and its tickets."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from public_calls.call import Call, Valid
from vitcache import PinnedRing


def ring(stack: ExitStack) -> PinnedRing:
    return stack.enter_context(PinnedRing(1 << 12, num_threads=1, backend="host"))


def construct(stack: ExitStack) -> Call:
    def make(**given: Any) -> None:
        PinnedRing(**given).close()

    return make, {
        "capacity_bytes": 4096,
        "num_threads": 1,
        "backend": "host",
        "device": None,
        "piece_bytes": 1024,
    }


def copy_to(stack: ExitStack) -> Call:
    made = ring(stack)
    arguments = {"dst": torch.zeros(4), "src": torch.ones(4), "after": None, "timeout_s": 1.0}
    return lambda **given: made.copy_to(**given).synchronize(), arguments


def wait_for_ticket(stack: ExitStack) -> Call:
    return ring(stack).copy_to(torch.zeros(4), torch.ones(4)).wait, {"stream": None}


CALLS: dict[str, Valid] = {
    "PinnedRing": construct,
    "PinnedRing.copy_to": copy_to,
    "PinnedRing.has_free_bytes": lambda stack: (ring(stack).has_free_bytes, {"num_bytes": 64}),
    "Ticket.wait": wait_for_ticket,
}
