"""What an `EmbeddingCache` must do, in plain lists: each eviction, demotion, refusal and count."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Item:
    """An entry: its rows, the pages that they take, and its leases."""

    key: bytes
    rows: Tensor
    pages: int
    leases: int = 0


@dataclass(eq=False)
class Flight:
    """What was reserved and is not entered: pages of both tiers, and items between them."""

    key: bytes
    pages: int
    epoch: int
    device_pages: int = 0
    demoted: list[Item] = field(default_factory=list)

    @property
    def host_pages(self) -> int:
        return sum(item.pages for item in self.demoted)

    def pages_in(self, tier: str) -> int:
        return self.device_pages if tier == "device" else self.host_pages


class CacheModel:
    """Two lists of items, the first to go first, and those that are gone but leased."""

    def __init__(self, device_pages: int, host_pages: int, page_rows: int) -> None:
        self.capacity = {"device": device_pages, "host": host_pages}
        self.page_rows = page_rows
        self.tiers: dict[str, list[Item]] = {"device": [], "host": []}
        self.gone: dict[str, list[Item]] = {"device": [], "host": []}
        self.flights: list[Flight] = []
        self.epoch = 0
        self.counts = dict.fromkeys(
            ("hits", "misses", "insertions", "evictions", "demotions", "rejections"), 0
        )

    def items(self) -> dict[bytes, Item]:
        return {item.key: item for items in self.tiers.values() for item in items}

    def leased_pages(self, tier: str) -> int:
        return sum(item.pages for item in self.tiers[tier] + self.gone[tier] if item.leases)

    def put(self, key: bytes, rows: Tensor, *, fails: bool = False) -> bool:
        flight = self.reserve(key, len(rows))
        if flight is None:
            return False
        if fails:
            self.cancel(flight)
            return False
        return self.commit(flight, rows)

    def reserve(self, key: bytes, num_rows: int) -> Flight | None:
        pages = max(1, -(-num_rows // self.page_rows))
        if pages > self.available("device"):
            self.counts["rejections"] += 1
            return None
        old = self.items().get(key)
        short = pages - self.room("device")
        if old in self.tiers["device"] and old.leases == 0 and short > 0:
            self.drop(old)
        flight = Flight(key, pages, self.epoch)
        taken = min(pages, self.room("device"))
        for victim in self.victims("device", pages):
            self.tiers["device"].remove(victim)
            taken += victim.pages
            if victim.pages > self.available("host") - flight.host_pages:
                self.counts["evictions"] += 1
                continue
            for loser in self.victims("host", victim.pages + flight.host_pages):
                self.drop(loser)
            flight.demoted.insert(0, victim)
        flight.device_pages = taken
        self.flights.append(flight)
        return flight

    def commit(self, flight: Flight, rows: Tensor) -> bool:
        if flight.epoch != self.epoch:
            self.cancel(flight)
            self.counts["rejections"] += 1
            return False
        self.flights.remove(flight)
        for item in flight.demoted:
            if item.key in self.items():
                self.counts["evictions"] += 1
            else:
                self.tiers["host"].append(item)
                self.counts["demotions"] += 1
        if flight.key in self.items():
            self.drop(self.items()[flight.key])
        self.tiers["device"].append(Item(flight.key, rows.clone(), flight.pages))
        self.counts["insertions"] += 1
        return True

    def cancel(self, flight: Flight) -> None:
        self.flights.remove(flight)
        self.counts["evictions"] += len(flight.demoted)

    def get(self, key: bytes, num_rows: int | None) -> Item | None:
        item = self.items().get(key)
        if item is not None and num_rows is not None and len(item.rows) != num_rows:
            self.drop(item)
            item = None
        if item is None:
            self.counts["misses"] += 1
            return None
        self.counts["hits"] += 1
        for items in self.tiers.values():
            if item in items:
                items.remove(item)
                items.append(item)
        item.leases += 1
        return item

    def release(self, item: Item) -> None:
        item.leases -= 1

    def clear(self) -> None:
        self.epoch += 1
        for item in self.items().values():
            self.drop(item)

    def drop(self, item: Item) -> None:
        for tier, items in self.tiers.items():
            if item in items:
                items.remove(item)
                self.gone[tier].append(item)
        self.counts["evictions"] += 1

    def in_flight(self, tier: str) -> int:
        return sum(flight.pages_in(tier) for flight in self.flights)

    def available(self, tier: str) -> int:
        """Pages that can be had at all."""
        return self.capacity[tier] - self.leased_pages(tier) - self.in_flight(tier)

    def room(self, tier: str) -> int:
        """Pages that can be had without an eviction."""
        held = self.tiers[tier] + [item for item in self.gone[tier] if item.leases]
        return self.capacity[tier] - sum(item.pages for item in held) - self.in_flight(tier)

    def victims(self, tier: str, pages: int) -> list[Item]:
        short = pages - self.room(tier)
        chosen: list[Item] = []
        for item in self.tiers[tier]:
            if item.leases == 0 and short > sum(item.pages for item in chosen):
                chosen.append(item)
        for item in list(reversed(chosen)):
            if sum(item.pages for item in chosen) - item.pages >= short:
                chosen.remove(item)
        return chosen[::-1]


def same_rows(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.equal(found, expected)
