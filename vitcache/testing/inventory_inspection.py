"""The private state of the `Inventory` of vLLM's scheduler and of its fetches, for tests."""

from __future__ import annotations

from typing import Any, NamedTuple


class InventoryState(NamedTuple):
    """A snapshot of an inventory between two passes of the scheduler.

    Attributes
    ----------
    requests
        Requests that it keeps, other than the readers of the last steps, whose number is bounded.
    orders_in_flight
        Saves and loads of steps without a report.
    num_waiting
        Entries that were evicted before the report of their save.
    resident
        Identifiers that vLLM's encoder cache shows.
    host_pages, entry_pages
        Pages of the host tier in use, and pages of the entries that are in the host tier.
    """

    requests: set[str]
    orders_in_flight: list[Any]
    num_waiting: int
    resident: set[str]
    host_pages: int
    entry_pages: int


def inspect_inventory(inventory: Any) -> InventoryState:
    """Return the state of a `vitcache.adapters.vllm.inventory.Inventory`. Only its own thread may call."""
    steps = inventory._in_flight
    on_host = [entry.num_pages for entry in inventory._entries.values() if entry.on_host]
    return InventoryState(
        {*inventory._seen, *inventory._savers, *inventory._failed, *map(str, inventory._promised)},
        [*steps._saves, *steps._loads],
        inventory._num_waiting,
        set(inventory._resident),
        inventory._host.num_used,
        sum(on_host),
    )


class FetchState(NamedTuple):
    """A snapshot of the fetches of vLLM's scheduler.

    Attributes
    ----------
    requests
        Requests that it keeps.
    fetches
        Items whose fetches have not ended.
    num_used, num_leaving
        Host pages beside the host tier in use, and those of them that are free after the next step.
    """

    requests: set[str]
    fetches: set[Any]
    num_used: int
    num_leaving: int


def inspect_fetches(fetches: Any) -> FetchState:
    """Return the state of `TierFetches` of an inventory. Only its own thread may call."""
    cancelled = {flight.item for flight in fetches._cancelled}
    return FetchState(
        {*fetches._waits, *fetches._settled},
        {flight.item for flight in fetches._flights.values()} | cancelled,
        fetches._num_used,
        fetches._num_leaving,
    )
