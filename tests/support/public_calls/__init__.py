"""One valid call of each public callable, by its name on docs/calls.md, for tests that change its arguments.

A call is made by a function that gets an `ExitStack`, which closes the objects of the call, and returns the
callable and the arguments by name. The arguments are all that the callable takes.
"""

from __future__ import annotations

from public_calls import adapters, cache, keys, pipeline, placement, ring, tiers
from public_calls.call import Call, Valid

CALLS: dict[str, Valid] = {
    name: valid
    for module in (placement, keys, cache, ring, tiers, pipeline, adapters)
    for name, valid in module.CALLS.items()
}

__all__ = ["CALLS", "Call", "Valid"]
