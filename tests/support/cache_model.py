"""A model of an `EmbeddingCache` in plain lists. It predicts evictions, demotions, rejections and counts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Item:
    """An entry: its rows, its number of pages, its leases, and its hits in its tier."""

    key: bytes
    rows: Tensor
    pages: int
    leases: int = 0
    hits: int = 0
    tenant: str = ""


@dataclass(eq=False)
class PendingWrite:
    """A reservation that is neither committed nor cancelled, and the items that are demoted for it."""

    key: bytes
    pages: int
    epoch: int
    source: Item | None = None  # the host item, if this is a promotion
    device_pages: int = 0
    own_host_pages: int = 0  # of the rows themselves, or of their host copy
    tier: str = "device"
    demoted: list[Item] = field(default_factory=list)
    replaced: set[bytes] = field(default_factory=set)  # inserted or discarded since the reservation began
    tenant: str = ""
    is_fetch: bool = False
    is_forgotten: bool = False

    @property
    def host_pages(self) -> int:
        return self.own_host_pages + sum(item.pages for item in self.demoted)

    def pages_in(self, tier: str) -> int:
        return self.device_pages if tier == "device" else self.host_pages


class CacheModel:
    """The items of each tier with the next victim first, host copies of device items, and dropped items.

    A dropped item keeps its pages as long as it is leased.
    """

    def __init__(
        self, device_pages: int, host_pages: int, page_rows: int, width: int, num_recorded: int
    ) -> None:
        self.capacity = {"device": device_pages, "host": host_pages}
        self.page_rows = page_rows
        self.width = width
        self.num_recorded = num_recorded
        self.evicted: list[bytes] = []
        self.tiers: dict[str, list[Item]] = {"device": [], "host": []}
        self.host_copies: list[Item] = []
        self.dropped: dict[str, list[Item]] = {"device": [], "host": []}
        self.pending: list[PendingWrite] = []
        self.epoch = 0
        self.counts = dict.fromkeys(
            (
                "hits",
                "misses",
                "insertions",
                "evictions",
                "demotions",
                "writebacks",
                "promotions",
                "rejections",
            ),
            0,
        )

    def items(self) -> dict[bytes, Item]:
        return {item.key: item for items in self.tiers.values() for item in items}

    def pages_of(self, tier: str) -> list[Item]:
        """All items that may have pages in the tier, host copies and dropped items included."""
        return self.tiers[tier] + self.dropped[tier] + (self.host_copies if tier == "host" else [])

    def leased_pages(self, tier: str) -> int:
        return sum(item.pages for item in self.pages_of(tier) if item.leases)

    def pages_for(self, num_rows: int, width: int) -> int:
        return max(1, -(-num_rows // (self.page_rows * (self.width // width))))

    def put(
        self, key: bytes, rows: Tensor, *, fails: bool = False, tier: str = "device", tenant: str = ""
    ) -> bool:
        pending = self.reserve(key, *rows.shape, tier=tier, tenant=tenant)
        if pending is None:
            return False
        if fails:
            self.cancel(pending)
            return False
        return self.commit(pending, rows)

    def fetch(self, key: bytes, num_rows: int, width: int, tenant: str) -> PendingWrite | None:
        pages = self.pages_for(num_rows, width)
        if key in self.items() or self.is_being_demoted(key) or pages > self.available("host"):
            return None
        self.evict_from_host(pages)
        pending = PendingWrite(key, pages, self.epoch, tier="host", tenant=tenant, is_fetch=True)
        pending.own_host_pages = pages
        self.pending.append(pending)
        return pending

    def forget(self, key: bytes) -> int:
        for pending in self.pending:
            pending.is_forgotten |= pending.key == key
        return int(self.discard(key))

    def forget_tenant(self, tenant: str) -> int:
        for pending in self.pending:
            pending.is_forgotten |= pending.tenant == tenant
        rejected = [pending.is_forgotten for pending in self.pending]
        keys = {item.key for item in self.items().values() if item.tenant == tenant}
        keys |= {item.key for item in self.being_demoted() if item.tenant == tenant}
        for key in sorted(keys):
            self.discard(key)
        for pending, is_forgotten in zip(self.pending, rejected, strict=True):
            pending.is_forgotten = is_forgotten  # `discard` rejects fetches of other tenants, too
        return len(keys)

    def being_demoted(self) -> list[Item]:
        return [
            item
            for pending in self.pending
            if pending.epoch == self.epoch
            for item in pending.demoted
            if item.key not in pending.replaced
        ]

    def is_being_demoted(self, key: bytes) -> bool:
        return any(item.key == key for item in self.being_demoted())

    def peek(self, key: bytes, num_rows: int, width: int) -> Item | None:
        item = self.items().get(key)
        if item is None or tuple(item.rows.shape) != (num_rows, width):
            return None
        item.leases += 1
        return item

    def reserve(
        self, key: bytes, num_rows: int, width: int, *, tier: str = "device", tenant: str = ""
    ) -> PendingWrite | None:
        pages = self.pages_for(num_rows, width)
        tiers = ("device", "host") if tier == "both" else (tier,)
        if any(pages > self.available(each) for each in tiers):
            self.counts["rejections"] += 1
            return None
        for each in tiers:
            old = self.items().get(key)
            if old is None:
                continue
            there = old if old in self.tiers[each] else self.copy_of(old) if each == "host" else None
            if there is not None and there.leases == 0 and pages > self.free_pages(each):
                self.drop(old)
        pending = PendingWrite(key, pages, self.epoch, tier=tier, tenant=tenant)
        if tier != "host":
            return self.begin(pending)
        self.evict_from_host(pages)
        pending.own_host_pages = pages
        self.pending.append(pending)
        return pending

    def reserve_run(self, key: bytes, num_rows: int, width: int, *, has_run: bool) -> PendingWrite | None:
        """Reserve one run of free pages; the caller knows whether there is a run."""
        pages = self.pages_for(num_rows, width)
        if pages > self.capacity["device"]:
            self.counts["rejections"] += 1
        if not has_run:
            return None
        assert pages <= self.free_pages("device")
        return self.take_run(PendingWrite(key, pages, self.epoch))

    def take_run(self, pending: PendingWrite) -> PendingWrite:
        pending.device_pages = pending.pages
        self.pending.append(pending)
        return pending

    def copy_to_host(self, key: bytes) -> bool:
        item = self.items().get(key)
        if item not in self.tiers["device"]:
            return False
        if self.copy_of(item) is None:
            if item.pages > self.free_pages("host"):
                return False
            self.host_copies.append(Item(key, item.rows, item.pages, tenant=item.tenant))
            self.counts["writebacks"] += 1
        return True

    def demote(self, key: bytes) -> bool:
        item = self.items().get(key)
        if item not in self.tiers["device"] or item.leases or not self.copy_to_host(key):
            return False
        self.demote_to_copy(item)
        return True

    def demote_to_copy(self, item: Item) -> None:
        copy = self.copy_of(item)
        assert copy is not None
        self.tiers["device"].remove(item)
        self.host_copies.remove(copy)
        self.tiers["host"].append(copy)
        copy.hits = 0
        self.counts["demotions"] += 1

    def discard_from_host(self, key: bytes) -> bool:
        item = self.items().get(key)
        if item not in self.tiers["device"]:
            return self.discard(key)
        copy = self.copy_of(item)
        if copy is None:
            return False
        self.host_copies.remove(copy)
        self.dropped["host"].append(copy)
        return True

    def can_compact(self) -> bool:
        return self.leased_pages("device") == 0 and self.in_flight("device") == 0

    def lose_device_pages(self, keys: list[bytes]) -> None:
        """Demote device items to their host copies, and drop those without one: their move failed."""
        for key in keys:
            item = self.items()[key]
            if self.copy_of(item):
                self.demote_to_copy(item)
            else:
                self.drop(item)

    def evict_from_host(self, pages: int) -> None:
        for victim in self.victims("host", pages):
            if victim in self.host_copies:
                self.host_copies.remove(victim)
            else:
                self.drop(victim)

    def expect(self, num_rows: list[int], widths: list[int]) -> None:
        pages = sum(map(self.pages_for, num_rows, widths))
        victims = self.victims("device", min(pages, self.available("device")))
        copies = [copy for victim in victims if (copy := self.copy_of(victim))]
        self.host_copies = [copy for copy in self.host_copies if copy not in copies]
        kept_keys = [copy.key for copy in copies]
        for victim in reversed(victims):
            taken = sum(copy.pages for copy in copies)
            if victim.key in kept_keys or victim.pages > self.available("host") - taken:
                continue
            self.evict_from_host(victim.pages + taken)
            copies.append(Item(victim.key, victim.rows, victim.pages, tenant=victim.tenant))
        self.host_copies += copies
        self.counts["writebacks"] += len(copies) - len(kept_keys)

    def forget_copies(self, count: int) -> None:
        """Remove the last `count` copies, which failed. Host entries evicted for them stay evicted."""
        self.counts["writebacks"] -= count
        del self.host_copies[len(self.host_copies) - count :]

    def promote(self, source: Item, *, has_run: bool | None = None) -> PendingWrite | None:
        """`has_run`: whether there is a run of free pages, which the promotion must use. None: any pages."""
        if source not in self.tiers["host"] or source.pages > self.available("device"):
            return None
        if has_run is not None:
            pending = PendingWrite(source.key, source.pages, self.epoch, source, tenant=source.tenant)
            return self.take_run(pending) if has_run else None
        return self.begin(PendingWrite(source.key, source.pages, self.epoch, source, tenant=source.tenant))

    def begin(self, pending: PendingWrite) -> PendingWrite:
        """Take the pages of a pending write, and evict or demote the victims."""
        pages = pending.pages
        taken = min(pages, self.free_pages("device"))
        without_copy: list[Item] = []
        for victim in reversed(self.victims("device", pages)):
            taken += victim.pages
            if self.copy_of(victim):
                self.demote_to_copy(victim)
            else:
                self.tiers["device"].remove(victim)
                without_copy.append(victim)
        if pending.tier == "both":
            self.evict_from_host(pages)
            pending.own_host_pages = pages
        for victim in reversed(without_copy):
            if victim.pages > self.available("host") - pending.host_pages:
                self.count_eviction(victim.key)
                continue
            self.evict_from_host(victim.pages + pending.host_pages)
            pending.demoted.insert(0, victim)
        pending.device_pages = taken
        self.pending.append(pending)
        return pending

    def commit(self, pending: PendingWrite, rows: Tensor) -> bool:
        source = pending.source
        if pending.epoch != self.epoch:
            self.cancel(pending)
            self.counts["rejections"] += source is None and not pending.is_fetch
            return False
        self.pending.remove(pending)
        for item in pending.demoted:
            if item.key in pending.replaced:
                self.counts["evictions"] += 1
            else:
                self.tiers["host"].append(item)
                self.counts["demotions"] += 1
                self.counts["writebacks"] += 1
        if source is not None:
            if source not in self.tiers["host"] or pending.is_forgotten:
                return False
            self.tiers["host"].remove(source)
            self.host_copies.append(source)
            promoted = Item(pending.key, rows.clone(), pending.pages, tenant=source.tenant)
            self.tiers["device"].append(promoted)
            self.counts["promotions"] += 1
            return True
        if pending.is_forgotten or (pending.is_fetch and pending.key in self.items()):
            self.counts["rejections"] += not pending.is_fetch
            return False
        for other in self.pending:
            other.replaced.add(pending.key)
        if pending.key in self.items():
            self.drop(self.items()[pending.key])
        if pending.key in self.evicted:
            self.evicted.remove(pending.key)
        item = Item(pending.key, rows.clone(), pending.pages, tenant=pending.tenant)
        self.tiers["host" if pending.tier == "host" else "device"].append(item)
        if pending.tier == "both":
            self.host_copies.append(Item(pending.key, item.rows, pending.pages, tenant=pending.tenant))
            self.counts["writebacks"] += 1
        self.counts["insertions"] += 1
        return True

    def cancel(self, pending: PendingWrite) -> None:
        self.pending.remove(pending)
        self.counts["evictions"] += len(pending.demoted)
        if pending.epoch == self.epoch:
            for item in pending.demoted:
                if item.key not in pending.replaced:
                    self.record(item.key)

    def discard(self, key: bytes) -> bool:
        is_demoted = False
        for pending in self.pending:
            pending.is_forgotten |= pending.is_fetch and pending.key == key
            if pending.epoch == self.epoch and key not in pending.replaced:
                is_demoted |= any(item.key == key for item in pending.demoted)
            pending.replaced.add(key)
        if is_demoted:
            self.record(key)
        item = self.items().get(key)
        if item is not None:
            self.drop(item)
        return is_demoted or item is not None

    def take_evicted(self) -> list[bytes]:
        taken, self.evicted = self.evicted, []
        return taken

    def count_eviction(self, key: bytes) -> None:
        self.counts["evictions"] += 1
        self.record(key)

    def record(self, key: bytes) -> None:
        self.evicted = [*(other for other in self.evicted if other != key), key][-self.num_recorded :]

    def get(self, key: bytes, num_rows: int | None, width: int | None) -> Item | None:
        item = self.items().get(key)
        if item is not None and (
            num_rows not in (None, item.rows.shape[0]) or width not in (None, item.rows.shape[1])
        ):
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
        item.hits += 1
        return item

    def release(self, item: Item) -> None:
        item.leases -= 1

    def clear(self) -> None:
        self.epoch += 1
        for item in self.items().values():
            self.drop(item)
        self.evicted.clear()

    def drop(self, item: Item) -> None:
        for tier, items in self.tiers.items():
            if item in items:
                items.remove(item)
                self.dropped[tier].append(item)
        if copy := self.copy_of(item):
            self.host_copies.remove(copy)
            self.dropped["host"].append(copy)
        self.count_eviction(item.key)

    def copy_of(self, item: Item) -> Item | None:
        return next((copy for copy in self.host_copies if copy.key == item.key), None)

    def in_flight(self, tier: str) -> int:
        return sum(pending.pages_in(tier) for pending in self.pending)

    def available(self, tier: str) -> int:
        """Pages that are neither leased nor in flight: evictions can free them."""
        return self.capacity[tier] - self.leased_pages(tier) - self.in_flight(tier)

    def free_pages(self, tier: str) -> int:
        """Pages that are free without an eviction."""
        kept = [item for item in self.pages_of(tier) if item.leases or item not in self.dropped[tier]]
        return self.capacity[tier] - sum(item.pages for item in kept) - self.in_flight(tier)

    def victims(self, tier: str, pages: int) -> list[Item]:
        missing = pages - self.free_pages(tier)
        chosen: list[Item] = []
        for item in (self.host_copies if tier == "host" else []) + self.tiers[tier]:
            if item.leases == 0 and missing > sum(item.pages for item in chosen):
                chosen.append(item)
        for item in list(reversed(chosen)):
            if sum(item.pages for item in chosen) - item.pages >= missing:
                chosen.remove(item)
        return chosen[::-1]


def same_rows(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.equal(found, expected)
