"""What an `EmbeddingCache` must do, in plain lists: each eviction, demotion, refusal and count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Item:
    """An entry: its rows, the pages that they take, and its leases."""

    key: bytes
    rows: Tensor
    pages: int
    leases: int = 0


class CacheModel:
    """Two lists of items, the first to go first, and those that are gone but leased."""

    def __init__(self, device_pages: int, host_pages: int, page_rows: int) -> None:
        self.capacity = {"device": device_pages, "host": host_pages}
        self.page_rows = page_rows
        self.tiers: dict[str, list[Item]] = {"device": [], "host": []}
        self.gone: dict[str, list[Item]] = {"device": [], "host": []}
        self.counts = dict.fromkeys(
            ("hits", "misses", "insertions", "evictions", "demotions", "rejections"), 0
        )

    def items(self) -> dict[bytes, Item]:
        return {item.key: item for items in self.tiers.values() for item in items}

    def leased_pages(self, tier: str) -> int:
        return sum(item.pages for item in self.tiers[tier] + self.gone[tier] if item.leases)

    def put(self, key: bytes, rows: Tensor, *, fails: bool = False) -> bool:
        pages = max(1, -(-len(rows) // self.page_rows))
        if pages > self.capacity["device"] - self.leased_pages("device"):
            self.counts["rejections"] += 1
            return False
        old = self.items().get(key)
        short = pages - self.room("device")
        if old in self.tiers["device"] and old.leases == 0 and short > 0:
            self.drop(old)
        demoted: list[Item] = []
        for victim in self.victims("device", pages):
            self.tiers["device"].remove(victim)
            taken = sum(item.pages for item in demoted)
            if victim.pages > self.capacity["host"] - self.leased_pages("host") - taken:
                self.counts["evictions"] += 1
                continue
            for loser in self.victims("host", victim.pages + taken):
                self.drop(loser)
            demoted.insert(0, victim)
        if fails:
            self.counts["evictions"] += len(demoted)
            return False
        self.tiers["host"] += demoted
        self.counts["demotions"] += len(demoted)
        if key in self.items():
            self.drop(self.items()[key])
        self.tiers["device"].append(Item(key, rows.clone(), pages))
        self.counts["insertions"] += 1
        return True

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
        for item in self.items().values():
            self.drop(item)

    def drop(self, item: Item) -> None:
        for tier, items in self.tiers.items():
            if item in items:
                items.remove(item)
                self.gone[tier].append(item)
        self.counts["evictions"] += 1

    def room(self, tier: str) -> int:
        """Pages that can be had without an eviction."""
        held = self.tiers[tier] + [item for item in self.gone[tier] if item.leases]
        return self.capacity[tier] - sum(item.pages for item in held)

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
